"""A test of the plumbing of heads on the encoder, not evidence about patients: simulated cohorts with known effects.

    python Testing/Evaluation/downstream.py ENCODER [--subjects 48] [--heads linear MLP ...] [--targets age ...]

Age loosens white matter (FA falls, MD rises), a group has more water in one region, and a coin is tossed for each
subject: what predicts it beyond chance leaks. Heads and baselines see the same five folds. Then the same heads,
trained on scans of one protocol, predict those subjects that they were not trained on from scans of another, with other
directions, b-value and number of volumes. ``planted`` has what was simulated, and is the best that a scan could tell;
``random weights`` is an encoder that never learnt anything; ``chance`` are numbers drawn blindly. Intervals hold other
subjects of this simulation, not other trainings. The effects are as large as we made them: no row says what a
representation is worth in people.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohorts import SCHEMES, TARGETS, Cohort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import linregress, zscore

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream import finetune, resnet
from DiffusionFMLib.downstream.baselines import CELLS, by_region, cells, rotation_invariants, tensor_maps
from DiffusionFMLib.downstream.finetune import LOW_RANK, WHOLE, FineTuning, frozen_part
from DiffusionFMLib.downstream.heads import POOLINGS, TOKENS, linear_head, perceptron_head, representation
from DiffusionFMLib.downstream.learning import NetworkLearner, Schedule
from DiffusionFMLib.downstream.metrics import METRICS
from DiffusionFMLib.downstream.validation import Learner, Target, cross_validated
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder, load_encoder
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import encode
from DiffusionFMLib.events import SilentReport

LINEAR, PERCEPTRON, LAST, LORA, RESNET = "linear", "MLP", "last block", "LoRA", "ResNet-18"
HEADS = (LINEAR, PERCEPTRON, LAST, LORA, RESNET)

TUNING = {LAST: Schedule(epochs=6, patience=2), LORA: Schedule(epochs=6, patience=2, rate=3e-3)}
SCRATCH = Schedule(epochs=20, patience=6, rate=3e-3)

RESNET_WIDTH = 16
"""A quarter of the usual one, for two CPU cores."""

BLIND = 200
"""Draws of what chance is."""


@dataclass(frozen=True, eq=False)
class Row:
    """A way to predict.

    Parameters
    ----------
    name, head : str
    subjects : dict of str to array or list
        By scheme.
    make : callable
        A new learner for a kind of target.
    """

    name: str
    head: str
    subjects: dict[str, Any]
    make: Callable[[str], Learner]


def of_scans(cohort: Cohort, of: Callable[[Acquisition], Any]) -> dict[str, list]:
    """Something of each scan, by scheme."""
    return {name: [of(scan) for scan in scans] for name, scans in cohort.scans.items()}


def on_features(name: str, subjects: dict[str, list], heads: list[str]) -> Iterator[Row]:
    """Linear and perceptron heads on features, shape (F,) each."""
    features = {scheme: np.stack(rows) for scheme, rows in subjects.items()}
    if LINEAR in heads:
        yield Row(name, LINEAR, features, linear_head)
    if PERCEPTRON in heads:
        yield Row(name, PERCEPTRON, features, lambda kind: perceptron_head(kind, 0))


def frozen(name: str, cohort: Cohort, trained: TrainedEncoder, heads: list[str]) -> Iterator[Row]:
    """Heads on the representations of an encoder that stays as it is."""
    if not {LINEAR, PERCEPTRON} & set(heads):
        return
    both = of_scans(cohort, lambda scan: _both(scan, trained))
    for pooling in POOLINGS:
        each = {scheme: [found[pooling] for found in rows] for scheme, rows in both.items()}
        yield from on_features(f"{name}, {pooling}", each, heads)


def _both(scan: Acquisition, trained: TrainedEncoder) -> dict[str, NDArray]:
    encoding = encode(scan, trained, SilentReport())
    return {pooling: representation(encoding, pooling) for pooling in POOLINGS}


def tuned(cohort: Cohort, trained: TrainedEncoder, pooling: str, heads: list[str]) -> Iterator[Row]:
    """The last block, whole and by low-rank changes."""
    changes = {head: change for head, change in ((LAST, WHOLE), (LORA, LOW_RANK)) if head in heads}
    if not changes:
        return
    subjects = of_scans(cohort, lambda scan: frozen_part(scan, trained))
    for head, change in changes.items():
        build = finetune.builder(trained.network, FineTuning(change, pooling=pooling))
        yield Row(f"encoder, {pooling}", head, subjects, _network(build, TUNING[head]))


def by_hand(cohort: Cohort, heads: list[str]) -> Iterator[Row]:
    """What needs no encoder."""
    maps = of_scans(cohort, tensor_maps)
    regions = of_scans(cohort, cells)
    number = int(np.prod(CELLS))

    def regional(of: dict[str, list]) -> dict[str, list]:
        return {
            scheme: [by_region(one, where, number) for one, where in zip(rows, regions[scheme], strict=True)]
            for scheme, rows in of.items()
        }

    yield from on_features("FA, MD by region", regional(maps), heads)
    yield from on_features("RISH by region", regional(of_scans(cohort, rotation_invariants)), heads)
    if RESNET in heads:
        volumes = {scheme: [torch.from_numpy(one) for one in rows] for scheme, rows in maps.items()}
        yield Row("FA, MD", RESNET, volumes, _network(resnet.builder(RESNET_WIDTH), SCRATCH))
    yield Row("planted", LINEAR, dict.fromkeys(cohort.scans, cohort.planted), linear_head)


def _network(build: Callable, schedule: Schedule) -> Callable[[str], Learner]:
    return lambda kind: NetworkLearner(build, kind, schedule)


class Blind:
    """Numbers drawn about the mean, or about one half, that know nothing of anybody."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def fit(self, x: Any, y: NDArray) -> None:
        """Learn nothing."""

    def predict(self, x: Any) -> NDArray:
        return self.rng.normal(0, 1e-3, len(x))

    def predict_proba(self, x: Any) -> NDArray:
        return np.full((len(x), 2), 0.5) + self.predict(x)[:, None] * (-1, 1)


def chance(target: Target) -> dict[str, float]:
    """Mean metrics of who is blind."""
    rng, nothing = np.random.default_rng(41), np.empty((len(target.values), 0))
    drawn = [cross_validated(lambda: Blind(rng), nothing, target)[""].scores(1) for _ in range(BLIND)]
    return {name: float(np.mean([scores[name].value for scores in drawn])) for name in METRICS[target.kind]}


def effects(cohort: Cohort) -> str:
    """What age and group make of FA and MD, measured in the scans."""
    scheme = next(iter(SCHEMES))
    maps = [tensor_maps(scan)[:, white] for scan, white in zip(cohort.scans[scheme], cohort.white, strict=True)]
    fa, md = np.array([values.mean(1) for values in maps]).T
    older = zscore(cohort.targets["age"].values)
    slopes = [linregress(older, values) for values in (fa, md)]
    return (
        f"{len(fa)} subjects; a standard deviation of age changes FA of white matter by {slopes[0].slope:+.4f} "
        f"(r {slopes[0].rvalue:+.2f}), MD by {slopes[1].slope:+.4f} um2/ms (r {slopes[1].rvalue:+.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path, help="of an encoder")
    parser.add_argument("--subjects", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pooling", choices=POOLINGS, default=TOKENS, help="representation that fine-tuning works on")
    parser.add_argument("--heads", nargs="*", choices=HEADS, default=list(HEADS))
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    arguments = parser.parse_args()
    console, waiting = Console(width=205), Console(stderr=True)
    console.print((__doc__ or "").split("\n")[0])
    trained = load_encoder(arguments.weights)
    torch.manual_seed(arguments.seed)
    untrained = TrainedEncoder(DiffusionTransformer(trained.network.shape).eval())
    cohort = Cohort.of(arguments.subjects, arguments.seed)
    console.print(effects(cohort))
    first = next(iter(SCHEMES))
    targets = {name: cohort.targets[name] for name in arguments.targets}
    columns = [f"{target}: {name}" for target, aim in targets.items() for name in METRICS[aim.kind]]
    tables = {
        scheme: Table(
            "from", "head", *columns, "CPU s", title=f"trained on protocol {first}, tested on protocol {scheme}"
        )
        for scheme in SCHEMES
    }
    rows = (
        row
        for source in (
            frozen("encoder", cohort, trained, arguments.heads),
            tuned(cohort, trained, arguments.pooling, arguments.heads),
            frozen("random weights", cohort, untrained, arguments.heads),
            by_hand(cohort, arguments.heads),
        )
        for row in source
    )
    for row in rows:
        begun, cells_of = time.process_time(), {scheme: [] for scheme in SCHEMES}
        for aim in targets.values():
            found = cross_validated(lambda row=row, aim=aim: row.make(aim.kind), row.subjects[first], aim, row.subjects)
            for scheme, result in found.items():
                scores = result.scores().values()
                cells_of[scheme] += [f"{value:.2f} ({low:.2f}, {high:.2f})" for value, low, high in scores]
        seconds = f"{time.process_time() - begun:.0f}"
        waiting.print(f"{row.name}, {row.head}, {seconds} s:", *cells_of[first], sep="  ")
        for scheme, table in tables.items():
            table.add_row(row.name, row.head, *cells_of[scheme], seconds)
    blind = [f"{value:.2f}" for aim in targets.values() for value in chance(aim).values()]
    for table in tables.values():
        table.add_row("chance", "", *blind, "")
        console.print(table)


if __name__ == "__main__":
    main()

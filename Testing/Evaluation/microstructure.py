"""How far sparse maps of the tensor, kurtosis and NODDI are right, beside the peers, on the phantom.

    python Testing/Evaluation/microstructure.py [--weights FILE ...] [--scheme d c] [--snr 10 20] [--only dki noddi]

Every method gets the same noisy scan. The truth of kurtosis is the noise-free fit of very many directions at b = 1000
and 2000, which are the scans' own shells: it is the published tables' reference (MK within .001). That of NODDI is what
the phantom was made of. DIPY and AMICO come with their defaults; a row is left out where its package is not there, or
its method cannot fit the scan.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brain_phantom import SCHEMES, SCRIPT, BrainPhantom
from numpy.typing import NDArray
from peers import MAPS, SLOW, WIDTH, Case, Maps, Method, force, force_library, own_maps, per_scan, voxelwise
from per_scan import PARAMETERS
from rich.console import Console
from rich.table import Table

from DiffusionFMLib.physics import METHODS, MODELS
from DiffusionFMLib.physics.methods import RESTS_ON
from DiffusionFMLib.prior.weights import load_weights

DENOISER = "MP-PCA"
SMOOTHER = f"Gaussian {WIDTH:g}"

FORCE_LIBRARY = 30_000
"""FORCE's own default is 500,000, which takes an hour."""


@dataclass(frozen=True)
class Row:
    """Errors of one method on one scan.

    Parameters
    ----------
    model : str
    method : str
    errors : dict of str to tuple of float
        Root mean square and mean, by map.
    seconds : float
        Of the processor, without what was done before the fit.
    """

    model: str
    method: str
    errors: dict[str, tuple[float, float]]
    seconds: float


def rows(
    phantom: BrainPhantom, case: Case, models: list[str], weights: dict[str, str], library: dict[str, NDArray[Any]]
) -> Iterator[Row]:
    """Every method on one scan, for the models that the scan can feed."""
    cases = {"": case, DENOISER: case.denoised(), SMOOTHER: case.averaged()}
    for model in models:
        for name, method in voxelwise(model, case).items():
            for before, prepared in cases.items():
                yield judged(phantom, prepared, model, name, method, before)
        if model in PARAMETERS:
            for radius, name in ((0, "voxelwise"), (1, "3 x 3 x 3")):
                trained = partial(per_scan, model=model, radius=radius)
                yield judged(phantom, case, model, f"per-scan network, {name}", trained)
        if library:
            yield judged(phantom, case, model, "FORCE", partial(force, model=model, library=library))
        if model in weights:
            prior = partial(own_maps, model=model, method="prior", weights=weights[model])
            yield judged(phantom, case, model, "prior", prior)


def judged(phantom: BrainPhantom, case: Case, model: str, name: str, method: Method, before: str = "") -> Row:
    """A method's errors."""
    step = SLOW.get(name, 1)
    some = case.every(step)
    start = time.process_time()
    found = method(some)
    seconds = time.process_time() - start
    truth = {name: values[::step] for name, values in phantom.truth(model).items()}
    return Row(model, f"{before} + {name}" if before else name, errors(found, truth), seconds)


def errors(found: Maps, truth: Maps) -> dict[str, tuple[float, float]]:
    """Root mean square and mean of the error of each map; what is not a number counts as 0."""
    result = {}
    for name, values in found.items():
        error = np.nan_to_num(values, posinf=0, neginf=0) - truth[name]
        result[name] = float(np.sqrt(np.mean(error**2))), float(error.mean())
    return result


def table(title: str, model: str, snrs: list[float], found: dict[float, list[Row]]) -> Table:
    """Errors of one model's maps on one scheme: a line per method, and columns of each map at each SNR."""
    columns = [(name, snr) for name in MAPS[model] for snr in snrs]
    result = Table("method", *(f"{name.upper()} {snr:g}" for name, snr in columns), "CPU s", title=title)
    by_method: dict[str, dict[float, Row]] = {}
    for snr in snrs:
        for row in found[snr]:
            if row.model == model:
                by_method.setdefault(row.method, {})[snr] = row
    for method, lines in by_method.items():
        cells = []
        for name, snr in columns:
            rmse, bias = lines[snr].errors.get(name, (None, None))
            cells.append("" if rmse is None else f"{rmse:.3f} {bias:+.3f}")
        seconds = np.mean([row.seconds for row in lines.values()])
        result.add_row(method, *cells, f"{seconds:.1f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="of priors; else those that are shipped")
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--phantom", type=Path, default=SCRIPT)
    parser.add_argument("--scheme", nargs="*", choices=tuple(SCHEMES), default=["d", "c"])
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 20.0])
    parser.add_argument("--only", nargs="*", choices=tuple(MAPS), default=list(MAPS), help="models")
    parser.add_argument("--whole", action="store_true", help="the whole brain instead of an eighth of it")
    parser.add_argument(
        "--force", type=int, nargs="?", const=FORCE_LIBRARY, default=0, metavar="SIZE",
        help="also FORCE, with so many simulated signals: 3 ms each",
    )  # fmt: skip
    arguments = parser.parse_args()
    console = Console(width=150)
    if not arguments.phantom.is_file():
        console.print(f"no phantom: {arguments.phantom} is not there")
        return
    given = {load_weights(path).model.name: str(path) for path in arguments.weights}
    # a thread more than there are cores to spare makes all of it slower
    torch.set_num_threads(1)
    phantom = BrainPhantom(arguments.phantom, arguments.whole)
    for scheme in arguments.scheme:
        cases = {snr: phantom.case(scheme, snr) for snr in arguments.snr}
        gtab = next(iter(cases.values())).scan.gtab
        models = [name for name in arguments.only if (len(gtab.shells) > 1) == (name != "dti")]
        weights = {} if arguments.no_prior else {name: given.get(RESTS_ON.get(name, name), "") for name in models}
        weights = {name: path for name, path in weights.items() if "prior" in MODELS[name].methods}
        library = force_library(gtab, arguments.force) if arguments.force else {}
        found = {snr: list(rows(phantom, case, models, weights, library)) for snr, case in cases.items()}
        for model in models:
            title = f"{scheme}: {gtab.summary()}; {MODELS[model].title}. RMSE and bias in parenchyma, by SNR"
            console.print(table(title, model, arguments.snr, found))
            for name in MODELS[model].methods:
                if METHODS[name].voxelwise and (problem := METHODS[name].unsupported(MODELS[model], gtab)):
                    console.print(f"our {name} is not there: {problem}")


if __name__ == "__main__":
    main()

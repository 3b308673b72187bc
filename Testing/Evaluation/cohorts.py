"""A simulated cohort whose effects are known: age, a group and a coin, in heads that differ as heads do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import zscore

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream.metrics import CLASSIFICATION, REGRESSION
from DiffusionFMLib.downstream.validation import Target
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.simulation import anatomy as template
from DiffusionFMLib.simulation.anatomy import Architecture
from DiffusionFMLib.simulation.scanner import repelled_directions, smooth_texture
from DiffusionFMLib.training.anatomies import FIELDS
from DiffusionFMLib.training.examples import add_noise
from DiffusionFMLib.training.protocols import Protocol
from DiffusionFMLib.training.rendering import Contents, Replacement, TissueProperties, coarse_field

SHAPE = (24, 32, 8)
VOXEL = 3.0
CENTRE = (0.0, -8.0, 22.0)
"""The box of each scan, voxels; their edges, mm; and where its middle lies in the template, mm: ventricles, corpus
callosum and the white matter around them."""

SHIFT, TILT = 3.0, 4.0
"""How far heads lie from there, mm, and how they are turned, degrees: standard deviations along each axis."""

SNR = 25.0
SCHEMES = {"1": {0.0: 2, 1000.0: 12}, "2": {0.0: 1, 1500.0: 15}}
"""b-values, s/mm2, and how many volumes; each subject's directions are turned at random."""

TARGETS = ("age", "group", "coin")

AGE_MEAN, AGE_SD = 55.0, 12.0
PACKING, PACKING_SLOPE, PACKING_SD = 0.6, -0.03, 0.02
"""Share of white matter's signal from inside axons: its mean, what a standard deviation of age adds to it, and how
subjects of one age scatter."""

ACROSS, ACROSS_SLOPE, ACROSS_SD = 0.7, 0.05, 0.03
"""The same of the diffusivity across axons, um2/ms."""

PLACE, PLACE_SD, RADIUS = (28.0, 22.0, 22.0), 4.0, 14.0
"""Right frontal white matter: middle of the ball with more water in group 1, its scatter, and its radius, mm."""

WATER, WATER_MORE, WATER_SD = 0.08, 0.15, 0.06
"""Share of its tissue that water has replaced: of group 0, what group 1 has more, and how subjects scatter."""

WATER_DIFFUSIVITY, WATER_S0 = 2.0, 1.8


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans of n subjects, and what is known of them.

    Parameters
    ----------
    scans : dict of str to list of Acquisition
        By scheme; each has all subjects, in the same order.
    targets : dict of str to Target
    planted : array, shape (n, 3)
        What age and group act by: packing, diffusivity across axons, water. No scan tells more.
    white : list of array, shape (X, Y, Z), bool
        White matter.
    """

    scans: dict[str, list[Acquisition]]
    targets: dict[str, Target]
    planted: NDArray[np.float64]
    white: list[NDArray[np.bool_]]

    @classmethod
    def of(cls, count: int, seed: int = 0) -> Cohort:
        """So many subjects; the same seed gives the same."""
        rng = np.random.default_rng([seed, 40])
        age = rng.normal(AGE_MEAN, AGE_SD, count)
        older = zscore(age)
        group, coin = (rng.permutation(count) % 2 for _ in range(2))
        planted = np.column_stack([
            PACKING + PACKING_SLOPE * older + rng.normal(0, PACKING_SD, count),
            ACROSS + ACROSS_SLOPE * older + rng.normal(0, ACROSS_SD, count),
            (WATER + WATER_MORE * group + rng.normal(0, WATER_SD, count)).clip(0, 1),
        ])  # fmt: skip
        fields, points = anatomies(count, rng)
        scans: dict[str, list[Acquisition]] = {name: [] for name in SCHEMES}
        for subject in range(count):
            contents = contents_of(fields[subject], points[subject], planted[subject], rng)
            for name, scheme in SCHEMES.items():
                scans[name].append(scanned(contents, scheme, rng))
        kinds = (REGRESSION, CLASSIFICATION, CLASSIFICATION)
        each = zip(TARGETS, (age, group, coin), kinds, strict=True)
        targets = {name: Target(name, values.astype(float), kind) for name, values, kind in each}
        return cls(scans, targets, planted, [head[:2].sum(0) > 0.7 for head in fields])


def anatomies(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Heads' fields, shape (n, 13, X, Y, Z), and where their voxels lie in the template, mm, shape (n, X, Y, Z, 3)."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), -1) * VOXEL
    turns = [Rotation.from_euler("xyz", rng.normal(0, TILT, 3), degrees=True).as_matrix() for _ in range(count)]
    worlds = (grid @ turn.T + CENTRE + rng.normal(0, SHIFT, 3) for turn in turns)
    points = np.stack([template.Warp.draw(rng, folding=0).points(world) for world in worlds])
    # all heads at once: the template is read and blurred for each call
    tissue = template.tissue(points, VOXEL, SilentReport())
    fields = np.zeros((count, len(FIELDS), *SHAPE), np.float32)
    architecture = Architecture(SilentReport())
    for head, (found, turn) in enumerate(zip(fields, turns, strict=True)):
        fibres = architecture.fibres(points[head].reshape(-1, 3))
        found[0:2] = tissue.wm[head] * fibres.fractions.T.reshape(2, *SHAPE)
        found[2], found[3] = tissue.gm[head], tissue.csf[head]
        found[4:10] = (fibres.directions @ turn).reshape(-1, 6).T.reshape(6, *SHAPE)
        found[10:12] = fibres.dispersion.T.reshape(2, *SHAPE)
        found[12] = smooth_texture(SHAPE, VOXEL, rng)
        found[:, ~tissue.brain[head]] = 0
    return fields, points


def contents_of(
    fields: NDArray[np.float32], points: NDArray[np.float64], planted: NDArray[np.float64], rng: np.random.Generator
) -> Contents:
    """A subject, ready to be scanned."""
    packing, across, water = planted
    properties = TissueProperties(
        inside_axons=packing, inside_neurites=0.35, along=2.2, beside_along=across + 0.5, beside_across=across,
        grey=1.0, fluid=3.0, grey_s0=1.25, fluid_s0=3.0,
    )  # fmt: skip
    away = np.linalg.norm(points - PLACE - rng.normal(0, PLACE_SD, 3), axis=-1)
    fraction = water * np.clip((RADIUS - away) / VOXEL + 0.5, 0, 1)
    density = (0.1 * coarse_field(SHAPE, 3, rng) + rng.normal(0, 0.1)).exp().reshape(-1)
    flat = torch.from_numpy(fields.reshape(len(fields), -1))
    lesion = Replacement(torch.from_numpy(fraction.astype(np.float32).ravel()), WATER_DIFFUSIVITY, WATER_S0)
    return Contents(properties, flat, (1 + 0.5 * flat[12]).clamp(0.5, 1.5), density, [lesion])


def scanned(contents: Contents, scheme: dict[float, int], rng: np.random.Generator) -> Acquisition:
    """A scan of a subject, its directions turned at random."""
    bvals = np.repeat(list(scheme), list(scheme.values()))
    turn = Rotation.random(rng=rng).as_matrix()
    bvecs = [repelled_directions(count) @ turn.T if bval else np.zeros((count, 3)) for bval, count in scheme.items()]
    protocol = Protocol(bvals, np.vstack(bvecs), 1 / SNR, np.zeros(3))
    clean = contents.signal(bvals / 1000, protocol.bvecs).reshape(-1, *SHAPE)
    signal = add_noise(clean, protocol, rng).permute(1, 2, 3, 0).contiguous().numpy()
    mask = (contents.fields[:4].sum(0) > 0.5).numpy().reshape(SHAPE)
    return Acquisition(signal, np.diag([VOXEL, VOXEL, VOXEL, 1.0]), GradientTable(bvals, protocol.bvecs), mask)

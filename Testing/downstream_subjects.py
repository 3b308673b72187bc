"""Subjects for tests of heads: balls of one diffusivity, and targets."""

from __future__ import annotations

import numpy as np
from encoder_oracle import protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream.metrics import CLASSIFICATION
from DiffusionFMLib.downstream.validation import Target

GTAB = protocol({0.0: 1, 1000.0: 4, 2000.0: 3})
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def scan(seed: int, md: float = 0.8, size: tuple[int, int, int] = (9, 8, 4)) -> Acquisition:
    """A ball of one diffusivity, um2/ms, and some noise."""
    rng = np.random.default_rng([seed, 99])
    signal = 400 * np.exp(-GTAB.bvals / 1000 * md) + rng.normal(0, 10, (*size, len(GTAB)))
    centre = (np.array(size) - 1) / 2
    radius = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - centre) / (centre + 0.6), axis=-1)
    return Acquisition(signal.astype(np.float32), AFFINE, GTAB, radius < 1)


def target(kind: str, count: int, seed: int = 0) -> Target:
    values = np.random.default_rng([seed, 98]).normal(50, 12, count)
    if kind == CLASSIFICATION:
        values = (values > np.quantile(values, 0.6)).astype(float)
    return Target("a target", values, kind)

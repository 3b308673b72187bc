"""Random protocols: shells, directions, b0s, and the noise that comes with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.physics.tensor_arrays import spread_directions

COMMON_BVALS: Final = (700.0, 1000.0, 1000.0, 1000.0, 1200.0, 1500.0, 2000.0, 2500.0, 3000.0)
"""What most scans have; a third of all protocols have anything in between, s/mm2."""

BVAL_RANGE: Final = (500.0, 3000.0)
B0_RANGE: Final = (1, 6)
SNR_RANGE: Final = (5.0, 80.0)
MAX_CORRELATION: Final = 0.65
"""Interpolated and zero-filled images reach 0.6."""

WHITE_NOISE: Final = 0.4
"""Share of scans whose noise is uncorrelated."""

INTERPOLATED: Final = 0.75
"""Share of the others whose noise is correlated because the image was interpolated, which blurs the anatomy as much;
where parallel imaging did it, anatomy stays sharp."""


@dataclass(frozen=True)
class Family:
    """Protocols that a model is trained for.

    Parameters
    ----------
    shell_numbers : tuple of float
        Shares of protocols with one, two and three shells.
    directions : tuple of int
        Fewest and most in all.
    lowest_top : float
        Least b-value of the highest shell, s/mm2.
    """

    shell_numbers: tuple[float, float, float]
    directions: tuple[int, int]
    lowest_top: float


FAMILIES: Final = {
    "dti": Family((0.75, 0.17, 0.08), (3, 60), 0.0),
    "dki": Family((0.0, 0.7, 0.3), (8, 90), 1500.0),
    "encoder": Family((0.5, 0.3, 0.2), (8, 15), 0.0),
}
"""By the model's name, or the encoder's."""


@dataclass(frozen=True, eq=False)
class Protocol:
    """How a crop is scanned.

    Parameters
    ----------
    bvals : array, shape (N,), s/mm2
    bvecs : array, shape (N, 3), unit vectors in voxel axes
        Zero for b0 volumes.
    sigma : float
        Noise in each of the receiver's channels, where white matter has S0 = 1.
    correlation : array, shape (3,)
        Between the noise of neighbours along each axis.
    interpolated : bool
        Whether the anatomy is as blurred as the noise.
    """

    bvals: NDArray[np.float64]
    bvecs: NDArray[np.float64]
    sigma: float
    correlation: NDArray[np.float64]
    interpolated: bool = False

    @property
    def shells(self) -> dict[float, int]:
        """Volumes at each b-value, s/mm2; 0 among them."""
        values, counts = np.unique(self.bvals, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    @classmethod
    def draw(cls, family: Family, rng: np.random.Generator) -> Protocol:
        """A random one of a family."""
        shells = int(rng.choice(len(family.shell_numbers), p=family.shell_numbers)) + 1
        fewest, most = family.directions
        total = int(np.exp(rng.uniform(np.log(fewest), np.log(most + 0.99))))
        counts = rng.multinomial(max(total - shells, 0), np.full(shells, 1 / shells)) + 1
        n_b0 = round(float(np.exp(rng.uniform(*np.log(B0_RANGE)))))
        bvals, bvecs = [np.zeros(n_b0)], [np.zeros((n_b0, 3))]
        for count, bval in zip(counts, _draw_bvals(shells, family.lowest_top, rng), strict=True):
            bvals.append(np.full(count, bval))
            bvecs.append(draw_directions(int(count), rng))
        correlation = np.zeros(3)
        if rng.random() > WHITE_NOISE:
            # along all axes, or in the slice only
            correlation = rng.uniform(0, MAX_CORRELATION, 3) * (1, 1, rng.random() < 0.5)
        return cls(
            np.concatenate(bvals),
            np.concatenate(bvecs),
            float(np.exp(-rng.uniform(*np.log(SNR_RANGE)))),
            correlation,
            bool(rng.random() < INTERPOLATED),
        )

    def dense(self, per_shell: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The same b-values in many directions: what a long scan would have.

        Returns
        -------
        bvals : ndarray, shape (M,), s/mm2
        bvecs : ndarray, shape (M, 3)
        counts : ndarray, shape (M,)
            How many of this protocol's volumes each of them stands for.
        """
        bvals, bvecs, counts = [], [], []
        for bval, count in self.shells.items():
            directions = spread_directions(per_shell) if bval else np.zeros((1, 3))
            bvals.append(np.full(len(directions), bval))
            bvecs.append(directions)
            counts.append(np.full(len(directions), count / len(directions)))
        return np.concatenate(bvals), np.concatenate(bvecs), np.concatenate(counts)


def _draw_bvals(count: int, lowest_top: float, rng: np.random.Generator) -> NDArray[np.float64]:
    while True:
        if rng.random() < 1 / 3:
            bvals = rng.uniform(*BVAL_RANGE, count)
        else:
            bvals = rng.choice(COMMON_BVALS, count)
        bvals = np.sort(np.round(bvals, -1))
        if bvals[-1] >= lowest_top and (np.diff(bvals) > 250).all():
            return bvals


def draw_directions(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random subset of evenly spread directions, turned at random, shape (count, 3): from even to hardly so."""
    from scipy.spatial.transform import Rotation

    of = max(count, round(count * float(rng.choice([1.0, 1.0, 1.3, 2.0, 4.0]))))
    chosen = spread_directions(of)[rng.permutation(of)[:count]]
    # g and -g measure the same, but scanners do not know it
    return chosen @ Rotation.random(random_state=rng).as_matrix().T * rng.choice([-1.0, 1.0], (count, 1))

"""Do the gradient directions fit the picture? An axis flipped or swapped breaks fibres, and that can be seen.

In white matter the voxel one step along a fibre has the same fibre direction. A wrong sign or order of the gradients'
axes turns every direction in place, so that the step leads elsewhere and finds another one. All 24 ways to flip and
swap axes are tried (a direction and its opposite are one), and the one whose fibres continue best is the right one.
Schilling et al. 2019, Magn Reson Imaging 58:82-89; dwigradcheck of MRtrix3 does the like with tracking.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import image_rotation
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX, DIAGONAL, OFF_DIAGONAL, fractional_anisotropy

MIN_DIRECTIONS: Final = 12
MIN_VOLUME_ML: Final = 300.0
MIN_VOXELS: Final = 1500
"""Less white matter, or fewer directions, cannot decide."""

MIN_MARGIN: Final = 0.08
"""How much better than every other table the best must continue fibres, as a fraction of its score. Correct tables
of real scans of the whole or upper brain reach 0.23 to 0.30."""

STEP_MM: Final = 8.0
STEP_VOXELS: Final = 1.5
"""Length of the step along a fibre: the larger of both. Nearer voxels share signal; farther ones, the fibre bends."""

FA_RANGE: Final = (0.25, 1.0)
MAX_MD: Final = 1.5
"""White matter, roughly; directions elsewhere are noise, um2/ms."""

MAX_SEEDS: Final = 15_000

B_FOR_TENSOR: Final = 1000.0

AXES: Final = ("x", "y", "z")
ANATOMY: Final = ("left-right", "front-back", "head-foot")


@dataclass(frozen=True)
class GradientCheck:
    """Outcome of `check_gradients`.

    Parameters
    ----------
    verdict : str
        ``consistent``, ``suspect`` or ``undetermined``.
    sentence : str
        The verdict for people; names the flip or swap.
    flip : str
        Image axis whose sign looks wrong (``x``, ``y``, ``z``), or empty.
    swap : str
        Order of the image's axes that the table's columns look like they have (``yxz``), or empty.
    score : float
        How well fibres continue with the table as it is, 0..1.
    best_score : float
        The same for the best of the 24 tables.
    margin : float
        How much better the best is than the runner-up, as a fraction of its score.
    """

    verdict: str
    sentence: str
    flip: str = ""
    swap: str = ""
    score: float = 0.0
    best_score: float = 0.0
    margin: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to flip and swap axes: column i of the right table is column ``order[i]`` of the given one, signed."""

    order: tuple[int, ...]
    flip: int | None

    @property
    def matrix(self) -> NDArray[np.float64]:
        """It, acting on a column vector in the image's axes, shape (3, 3)."""
        matrix = np.eye(3)[list(self.order)]
        if self.flip is not None:
            matrix[self.flip] *= -1
        return matrix


CANDIDATES: Final = tuple(Candidate(o, f) for o in permutations(range(3)) for f in (None, 0, 1, 2))
"""The first is the table as it is. Flipping two axes is flipping the third, and all three is none."""


def check_gradients(acquisition: Acquisition, report: Report | None = None) -> GradientCheck:
    """Check a scan's gradient directions against its fibres.

    Parameters
    ----------
    acquisition : Acquisition
        Its mask is used; one is made where it has none.
    report : Report, optional
        Asked between candidates whether to stop.

    Notes
    -----
    A wrong table is named in the image's own axes, which is where readers and converters err; for an oblique scan
    they are not the scanner's. A picture mirrored together with its table cannot be told from a right one.
    """
    gtab = acquisition.gtab
    if gtab.n_directions < MIN_DIRECTIONS:
        return _undetermined(f"the scan has {gtab.n_directions} directions and the check needs {MIN_DIRECTIONS}")
    mask = acquisition.mask
    if mask is None:
        from DiffusionFMLib.preprocessing.masking import brain_mask

        mask = brain_mask(acquisition)
    volume = mask.sum() * acquisition.voxel_volume / 1000
    if volume < MIN_VOLUME_ML:
        return _undetermined(f"the scan shows {volume:.0f} ml of brain and the check needs {MIN_VOLUME_ML:.0f}")
    fa, v1 = _directions(acquisition, mask)
    voxels = np.argwhere(fa > FA_RANGE[0])
    if len(voxels) < MIN_VOXELS:
        return _undetermined("too little white matter stands out from the noise")
    scores = _continuity(acquisition.voxel_sizes, fa, v1, voxels, report)
    return _verdict(scores, acquisition)


def _directions(acquisition: Acquisition, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """FA, shape (X, Y, Z), and main direction in the image's axes, shape (X, Y, Z, 3); zero outside white matter.

    By ordinary least squares on the logarithm: this check ranks directions, and needs no better fit.
    """
    volumes = _volumes(acquisition)
    inverse = np.linalg.pinv(DTI().design(acquisition.gtab.subset(volumes))).astype(np.float32)
    elements = np.zeros((int(np.count_nonzero(mask)), 7), np.float32)
    # one volume at a time: indexing by a mask and a list would copy the scan twice
    for column, volume in zip(inverse.T, volumes, strict=True):
        signal = acquisition.signal[..., volume][mask]
        elements += np.log(np.maximum(signal, 1e-3))[:, None] * column
    diagonal = elements[:, DIAGONAL]
    md = diagonal.mean(axis=1)
    # from the components, so that only white matter needs its eigenvectors
    anisotropy = fractional_anisotropy(diagonal, elements[:, OFF_DIAGONAL])
    white = (anisotropy > FA_RANGE[0]) & (anisotropy <= FA_RANGE[1]) & (md > 0) & (md < MAX_MD)
    fa = np.zeros(acquisition.shape, np.float32)
    v1 = np.zeros((*acquisition.shape, 3), np.float32)
    inside = tuple(axis[white] for axis in np.nonzero(mask))
    fa[inside] = anisotropy[white]
    tensors = elements[white][:, AS_MATRIX]
    v1[inside] = np.linalg.eigh(tensors)[1][:, :, 2] @ image_rotation(acquisition.affine)
    return fa, v1


def _volumes(acquisition: Acquisition) -> NDArray[np.intp]:
    """The b0s and the shell nearest to b = 1000 that has directions enough; all shells where none has."""
    gtab = acquisition.gtab
    enough = [s for s in gtab.shells if gtab.subset(list(s.indices)).n_directions >= MIN_DIRECTIONS]
    shells = [min(enough, key=lambda s: abs(s.bval - B_FOR_TENSOR))] if enough else list(gtab.shells)
    chosen = [*np.flatnonzero(gtab.b0_mask), *(index for shell in shells for index in shell.indices)]
    return np.array([index for index in sorted(chosen) if not gtab.trace_mask[index]], np.intp)


def _continuity(
    voxel_sizes: NDArray[np.float64],
    fa: NDArray[np.float32],
    v1: NDArray[np.float32],
    voxels: NDArray[np.intp],
    report: Report | None,
) -> NDArray[np.float64]:
    """How well fibres continue with each candidate, shape (24,), 0..1."""
    # evenly through the brain, and the same in every run
    voxels = voxels[:: -(-len(voxels) // MAX_SEEDS)]
    here = tuple(voxels.T)
    direction, weight = v1[here], fa[here]
    step = max(STEP_MM, STEP_VOXELS * float(voxel_sizes.max()))
    shape = np.array(fa.shape)
    scores = np.zeros(len(CANDIDATES))
    for c, candidate in enumerate(CANDIDATES):
        if report is not None:
            report.check()
        offset = (direction @ candidate.matrix.T * step / voxel_sizes).astype(np.float32)
        for target in (voxels + offset, voxels - offset):
            index = np.rint(target).astype(np.intp)
            within = ((index >= 0) & (index < shape)).all(axis=1)
            there = tuple(np.clip(index, 0, shape - 1).T)
            # turning both directions leaves their angle as it is: the candidate decides only where to look
            same = np.einsum("ni,ni->n", v1[there], direction) ** 2
            scores[c] += float((within * weight * fa[there] * same).sum())
    return scores / (2 * float((weight**2).sum()))


def _verdict(scores: NDArray[np.float64], acquisition: Acquisition) -> GradientCheck:
    ranked = np.argsort(-scores, kind="stable")
    best, second = int(ranked[0]), int(ranked[1])
    margin = float(1 - scores[second] / scores[best]) if scores[best] > 0 else 0.0
    numbers = (round(float(scores[0]), 4), round(float(scores[best]), 4), round(margin, 4))
    if margin < MIN_MARGIN:
        return _undetermined("fibres do not single out one table clearly", *numbers)
    if best == 0:
        return GradientCheck("consistent", "Gradient directions fit the fibres.", "", "", *numbers)
    candidate = CANDIDATES[best]
    flip = AXES[candidate.flip] if candidate.flip is not None else ""
    swap = "".join(AXES[i] for i in candidate.order) if candidate.order != (0, 1, 2) else ""
    faults = []
    if swap:
        moved = [AXES[i] for i in range(3) if candidate.order[i] != i]
        how = f"with {moved[0]} and {moved[1]} swapped" if len(moved) == 2 else f"in the wrong order ({swap} would fit)"
        faults.append(how)
    if candidate.flip is not None:
        axis = np.abs(image_rotation(acquisition.affine)[:, candidate.flip]).argmax()
        faults.append(f"with the sign of the image's {flip} axis ({ANATOMY[axis]}) flipped")
    sentence = (
        f"Gradient directions look to be written {' and '.join(faults)}: fibres continue "
        f"{100 * (scores[best] / scores[0] - 1):.0f} % better that way. Check the bvec file before trusting "
        f"directions or tracts; FA and MD do not depend on it."
    )
    return GradientCheck("suspect", sentence, flip, swap, *numbers)


def _undetermined(reason: str, *numbers: float) -> GradientCheck:
    return GradientCheck("undetermined", f"Gradient directions could not be checked: {reason}.", "", "", *numbers)

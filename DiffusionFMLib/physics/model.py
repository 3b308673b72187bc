"""What a signal model declares and can do.

Declarations (names, units, windows, what a protocol must offer) load without torch, because Slicer's own process
fills its menus from them; `signal` and `maps` compute on torch tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec

if TYPE_CHECKING:
    from torch import Tensor

MAX_GAUSSIAN_BVAL = 1500.0
"""s/mm2; beyond, diffusion in tissue is no longer Gaussian."""

MIN_SPAN = 0.1
"""Smallest singular value of directions that span space."""


@dataclass(frozen=True)
class Parameter:
    """One entry of a model's parameter vector theta.

    Parameters
    ----------
    name : str
    unit : str
        In physics' own units: diffusivities um2/ms, b ms/um2.
    bounds : tuple of float
        Physically possible range.
    transform : str
        How an unconstrained optimiser sees it: ``identity``, ``log`` or ``logit``.
    """

    name: str
    unit: str
    bounds: tuple[float, float]
    transform: str = "identity"


class SignalModel(ABC):
    """Forward model of the diffusion signal: pure, weightless, batched over voxels.

    Subclasses are final: one file and one entry in `MODELS` make a model known to the GUI, the CLI, the writers
    and the shared test suite.
    """

    name: ClassVar[str]
    """As on the command line: ``dti``."""
    label: ClassVar[str]
    """As in file names, ``model-{label}``: ``tensor``."""
    title: ClassVar[str]
    """As in menus."""
    citation: ClassVar[str]
    """What to cite for maps of this model; written to their sidecars."""
    parameters: ClassVar[tuple[Parameter, ...]]
    map_specs: ClassVar[tuple[MapSpec, ...]]
    """Maps that `maps` returns, in the order they are shown."""
    methods: ClassVar[tuple[str, ...]]
    """Names of the methods that can fit it, best default first; see `methods.Method`."""
    prior_directions: ClassVar[int] = 3
    """Fewest directions that the generative prior is trusted with."""

    @abstractmethod
    def unsupported(self, gtab: GradientTable) -> str | None:
        """Why this protocol cannot feed the model, as a sentence for the user; None when it can."""

    def too_few_shells(self, gtab: GradientTable) -> str | None:
        """Why the b-values of this protocol cannot feed the model however many directions there are; None when not."""
        return None

    def doubtful(self, gtab: GradientTable) -> str | None:
        """Why maps from this protocol are to be taken with care, as a sentence for the user; None when not."""
        return None

    @abstractmethod
    def signal(self, theta: Tensor, gtab: GradientTable) -> Tensor:
        """Signal of parameters theta, shape (..., P), at each volume: shape (..., N)."""

    @abstractmethod
    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """Maps of parameters theta, shape (..., P), in the units of `map_specs`: each (...) or (..., C)."""

    @abstractmethod
    def unphysical(self, theta: Tensor) -> Tensor:
        """Where parameters theta, shape (..., P), lie outside what is physically possible: bool, shape (...)."""


class LogLinearModel(SignalModel):
    """Model whose log signal is linear in its parameters: ln S = design @ theta."""

    @abstractmethod
    def design(self, gtab: GradientTable) -> NDArray[np.float64]:
        """Design matrix, shape (N, P), in physics' units."""

    def geometric_groups(self, gtab: GradientTable) -> NDArray[np.float64] | None:
        """Volumes that a nonlinear fit must average in the log domain first.

        Parameters
        ----------
        gtab : GradientTable, N volumes

        Returns
        -------
        ndarray, shape (G, N), or None
            Row-stochastic averaging matrix; None when every volume stands for itself.
        """
        return None

    def constraints(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """What makes parameters physical, for the method ``constrained``.

        Returns
        -------
        matrix : ndarray, shape (M, P)
        bounds : ndarray, shape (M,)
            ``matrix @ theta >= bounds``. None when the model declares no constraints.
        """
        return None

    def signal(self, theta: Tensor, gtab: GradientTable) -> Tensor:
        """See `SignalModel`."""
        design = theta.new_tensor(self.design(gtab))
        return (theta @ design.T).exp()


def weighting_problem(gtab: GradientTable) -> str | None:
    """Why no diffusivity can be told from these b-values, as a sentence for the user; None when one can."""
    if gtab.trace_mask.any():
        return (
            f"{int(gtab.trace_mask.sum())} volume(s) have a b-value above {gtab.b0_threshold:g} s/mm2 but no direction "
            "(a vendor's trace images); they must be set aside first."
        )
    shells = gtab.shells
    if not shells:
        return f"All {len(gtab)} volumes are b0: there is no diffusion weighting."
    if len(shells) == 1 and not gtab.b0_mask.any():
        return f"All {len(gtab)} volumes are at b = {shells[0].bval:.0f} s/mm2; a b0 or a second b-value is needed."
    return None


def few_directions(who: str, gtab: GradientTable, fewest: int = 3) -> str | None:
    """Why directions are too few to span space, as a sentence for the user; None when they do.

    Parameters
    ----------
    who : str
        What needs them.
    gtab : GradientTable
    fewest : int
    """
    count = gtab.n_directions
    if count < fewest:
        return f"The {who} needs {fewest} directions; this scan has {count} ({gtab.summary()})."
    smallest = np.linalg.svd(gtab.bvecs[~gtab.b0_mask], compute_uv=False)[-1]
    if smallest < MIN_SPAN:
        return f"The {who} needs directions that span space; this scan's {count} lie in one plane."
    return None


def beyond_gaussian(model: str, diffusivity: str, gtab: GradientTable) -> str | None:
    """That b-values are too high for a model of one diffusivity per direction, as a sentence; None when not."""
    bval = max(shell.bval for shell in gtab.shells)
    if bval <= MAX_GAUSSIAN_BVAL:
        return None
    return (
        f"{model} does not describe the signal at b = {bval:.0f} s/mm2: beyond about {MAX_GAUSSIAN_BVAL:.0f} its "
        f"{diffusivity} comes out low. Where the scan has lower shells, max b-value (--max-bval) leaves the others out."
    )

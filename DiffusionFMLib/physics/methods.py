"""Methods that models are fitted with: what each needs of a protocol, and the maps that it gives.

Like the models' declarations these load without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec, with_fit_maps, with_prior_maps
from DiffusionFMLib.physics.model import SignalModel, few_directions, weighting_problem

RESTS_ON = {"noddi": "dki"}
"""Models that are fitted to what the prior makes of another one's parameters."""


@dataclass(frozen=True)
class Method:
    """A conventional estimator: it fits each voxel by itself.

    Parameters
    ----------
    name : str
        As on the command line: ``wls``.
    """

    name: str

    @property
    def voxelwise(self) -> bool:
        """Whether a voxel's fit needs no other voxel."""
        return True

    def unsupported(self, model: SignalModel, gtab: GradientTable) -> str | None:
        """Why this protocol cannot feed the model with this method, as a sentence for the user; None when it can."""
        return model.unsupported(gtab)

    def map_specs(self, model: SignalModel, standard_errors: bool) -> tuple[MapSpec, ...]:
        """Maps of a fit, in the order they are shown."""
        return with_fit_maps(model.map_specs, standard_errors)

    def beside(self, model: SignalModel, gtab: GradientTable) -> str | None:
        """The method whose maps are made too, so that the user can compare; None when there is none."""
        return None


class PriorMethod(Method):
    """The generative prior: voxels are fitted together with their neighbours."""

    @property
    def voxelwise(self) -> bool:
        """See `Method`."""
        return False

    def unsupported(self, model: SignalModel, gtab: GradientTable) -> str | None:
        """See `Method`."""
        if problem := weighting_problem(gtab):
            return problem
        if not gtab.b0_mask.any():
            return f"The generative prior needs a b0 volume; this scan has none ({gtab.summary()})."
        return few_directions("generative prior", gtab, model.prior_directions) or model.too_few_shells(gtab)

    def map_specs(self, model: SignalModel, standard_errors: bool) -> tuple[MapSpec, ...]:
        """See `Method`; standard errors are those of the conventional fit."""
        return with_prior_maps(model.map_specs)

    def beside(self, model: SignalModel, gtab: GradientTable) -> str | None:
        """See `Method`."""
        return model.methods[0] if model.unsupported(gtab) is None else None

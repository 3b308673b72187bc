"""How far maps are from the truth of the phantoms, ours beside the peers': parenchyma only, NODDI's are in `noddi`."""

from __future__ import annotations

from dataclasses import dataclass

import dki
import dti
import numpy as np
from phantom import PARENCHYMA, brain, phantom, truth
from timing import ours

SNRS = (10, 20, 30)
DIRECTIONS = (30, 6)
"""At b = 1000, with one b0."""


@dataclass(frozen=True)
class AccuracyRow:
    """Error of a map; MD is in um2/ms, everything else a ratio."""

    scheme: str
    snr: int
    name: str
    rmse: float
    bias: float
    peer: str
    peer_rmse: float
    peer_bias: float


def rows() -> list[AccuracyRow]:
    """Lines of the table: all of them by weighted least squares."""
    return [*_tensor_rows(), *_kurtosis_rows()]


def _tensor_rows() -> list[AccuracyRow]:
    right, inside = truth(), brain()[2] < PARENCHYMA
    found = []
    for directions in DIRECTIONS:
        for snr in SNRS:
            acquisition = phantom(directions, snr=snr)
            mask = acquisition.mask
            maps, peer = ours(acquisition, "dti", "wls").maps, dti.dipy(acquisition, "WLS")
            for name, theirs, scale in zip(("fa", "md"), peer, (1, 1000), strict=True):
                errors = (scale * (values[mask] - right[name])[inside] for values in (maps[name].data, theirs))
                found.append(_row(f"1+{directions}", snr, name, *errors))
    return found


def _kurtosis_rows() -> list[AccuracyRow]:
    right, inside = dki.mean_kurtosis(), brain()[2] < PARENCHYMA
    found = []
    for snr in SNRS:
        acquisition = dki.phantom(snr=snr)
        chosen = slice(None, None, len(right) // dki.PEER_VOXELS)
        mk = ours(acquisition, "dki", "wls").maps["mk"].data[acquisition.mask][chosen][: dki.PEER_VOXELS]
        theirs = dki.dipy(dki.sample(acquisition), acquisition.gtab, "WLS")
        some, where = right[chosen][: dki.PEER_VOXELS], inside[chosen][: dki.PEER_VOXELS]
        counts = "+".join(map(str, (dki.B0_VOLUMES, *(count for _, count in dki.SHELLS))))
        found.append(_row(counts, snr, "mk", *((values - some)[where] for values in (mk, theirs))))
    return found


def _row(scheme: str, snr: int, name: str, error: np.ndarray, peer_error: np.ndarray) -> AccuracyRow:
    # what is not a number counts as exact, which favours whoever has more of it
    own, peer = (np.nan_to_num(part, posinf=0, neginf=0) for part in (error, peer_error))
    numbers = [(float(np.sqrt(np.mean(part**2))), float(part.mean())) for part in (own, peer)]
    return AccuracyRow(scheme, snr, name, *numbers[0], "DIPY", *numbers[1])


def show(table: list[AccuracyRow]) -> None:
    print(f"{'Error (WLS)':<28}{'RMSE':>8}{'bias':>8}  {'peer':<6}{'RMSE':>8}{'bias':>8}")
    for row in table:
        label = f"{row.name.upper()}, {row.scheme} volumes, SNR {row.snr}"
        own, peer = f"{row.rmse:8.3f}{row.bias:+8.3f}", f"{row.peer_rmse:8.3f}{row.peer_bias:+8.3f}"
        print(f"{label:<28}{own}  {row.peer:<6}{peer}")

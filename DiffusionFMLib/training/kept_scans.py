"""What is trained on of real scans, kept between runs so that a part is read without the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.io.bids import BidsDataset
from DiffusionFMLib.training.anatomies import version_of
from DiffusionFMLib.training.scan_anatomies import of_each_scan, read_scan, scan_name


class Kept(Protocol):
    """What can be made of a scan with a mask, and kept.

    Attributes
    ----------
    version : int
        Of how it is made: one more whenever the same scan would give another, so that kept ones are made again.
    """

    version: ClassVar[int]

    @classmethod
    def of(cls, acquisition: Acquisition) -> Kept:
        """From a scan with a mask; raises ProtocolError if it will not do."""

    def save(self, path: Path) -> None:
        """Write it as .npy, with the rest beside it."""

    @classmethod
    def load(cls, path: Path) -> Kept:
        """What `save` wrote; the signal stays on disk until it is used."""


K = TypeVar("K", bound=Kept)


def kept_scans(kind: type[K], name: str, scans: Path, folder: Path, report: Report) -> Iterator[K]:
    """All scans in a folder that will do, from the cache or new.

    Parameters
    ----------
    kind : type
        What is made of each.
    name : str
        What its files begin with.
    scans : Path
        Searched as for anatomies, see `scan_anatomies`; maps without a scan are left out.
    folder : Path
        Where they are kept between runs.
    report : Report
        Warned of scans that are left out.

    Raises
    ------
    InputError
        If there are none.
    """
    from DiffusionFMLib.preprocessing.masking import brain_mask

    def read(path: Path, dataset: BidsDataset | None) -> K:
        kept = folder / f"{name}-{scan_name(path, scans)}.npy"
        if not kept.is_file() or version_of(kept.with_suffix(".npz")) != kind.version:
            folder.mkdir(parents=True, exist_ok=True)
            acquisition = read_scan(path, dataset, report)
            kind.of(acquisition.with_mask(brain_mask(acquisition))).save(kept)
        return kind.load(kept)  # type: ignore[return-value]

    return of_each_scan(scans, read, report, maps=False)


def save_signal(path: Path, signal: NDArray[np.float16], version: int, **rest: Any) -> None:
    """Write a signal as .npy, and the rest beside it as .npz; the signal last, so that what is there is whole."""
    path.unlink(missing_ok=True)
    np.savez(path.with_suffix(".npz"), version=version, **rest)
    temporary = path.with_name(f".{path.name}.part.npy")
    np.save(temporary, signal)
    temporary.replace(path)

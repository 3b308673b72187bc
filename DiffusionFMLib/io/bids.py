"""Diffusion scans of a BIDS dataset, with the gradient tables that its inheritance principle gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from DiffusionFMLib.errors import GradientError
from DiffusionFMLib.io.images import stem

DESCRIPTION: Final = "dataset_description.json"

NOT_MAGNITUDE: Final = ("phase", "real", "imag")
"""Values of the entity ``part`` whose images no signal model is for."""


class BidsDataset:
    """A BIDS dataset on disk: what is below its subjects, and nothing of its derivatives or sources.

    Parameters
    ----------
    root : Path
        Folder of its dataset_description.json.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: dict[Path, list[Path]] = {}

    @staticmethod
    def at(folder: Path) -> BidsDataset | None:
        """The dataset whose root a folder is; our own results have a description too, but no subjects."""
        described = (folder / DESCRIPTION).is_file() and any(path.is_dir() for path in folder.glob("sub-*"))
        return BidsDataset(folder) if described else None

    def scans(self) -> list[Path]:
        """Diffusion series of all subjects and sessions, magnitude only, sorted."""
        found = (
            path
            for folder in ("sub-*/dwi", "sub-*/ses-*/dwi")
            for path in self.root.glob(f"{folder}/*_dwi.nii*")
            if path.name.endswith((".nii", ".nii.gz"))
        )
        return sorted(path for path in found if _entities(path).get("part") not in NOT_MAGNITUDE)

    def gradients(self, dwi: Path) -> tuple[Path, Path]:
        """The bval and bvec file of a scan.

        Raises
        ------
        GradientError
            If there is none, or several are equally near.
        """
        return self._inherited(dwi, ".bval"), self._inherited(dwi, ".bvec")

    def _inherited(self, dwi: Path, extension: str) -> Path:
        """The nearest file, from the scan's folder up to the root, that names no entity which the scan has not."""
        entities = _entities(dwi)
        for folder in (dwi.parent, *dwi.parent.parents):
            found = [
                path
                for path in self._tables_in(folder)
                if path.suffix == extension and _entities(path).items() <= entities.items()
            ]
            own = [path for path in found if stem(path) == stem(dwi)]
            if len(own or found) == 1:
                return (own or found)[0]
            if found:
                names = ", ".join(path.name for path in found)
                msg = f"{dwi.name} has several {extension[1:]} files in {folder}: {names}; expected one."
                raise GradientError(msg, "Name them so that one belongs to the scan, or remove the others.")
            if folder == self.root:
                break
        msg = f"{dwi.name} has no {extension[1:]} file in its folder or those above it, up to {self.root}."
        raise GradientError(msg, "Put it beside the scan.")

    def _tables_in(self, folder: Path) -> list[Path]:
        """Gradient tables in a folder; looked up once, since a root may hold thousands of subjects."""
        if folder not in self._tables:
            self._tables[folder] = sorted(path for path in folder.glob("*dwi.bv*") if _suffix(path) == "dwi")
        return self._tables[folder]


def _suffix(path: Path) -> str:
    return path.name.partition(".")[0].rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    """Entities of a file's name: ``{"sub": "01", "run": "1"}`` of sub-01_run-1_dwi.nii.gz."""
    pairs = (part.partition("-") for part in path.name.partition(".")[0].split("_")[:-1])
    return {key: value for key, _, value in pairs}

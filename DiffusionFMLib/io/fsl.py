"""FSL's bval and bvec text files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import GradientError
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io.images import ImageFile


def read_table(image: ImageFile, bval: str, bvec: str, b0_threshold: float) -> GradientTable:
    """Gradient table of an image from its bval and bvec files.

    Parameters
    ----------
    image : ImageFile
    bval, bvec : str
        Files; the image's own name with .bval(s) and .bvec(s) when empty.
    b0_threshold : float, s/mm2

    Raises
    ------
    GradientError
        If a file is missing, empty, not numbers, or does not fit the image.
    """
    bval_path, bvec_path = _beside(image, bval, "bval"), _beside(image, bvec, "bvec")
    bvals = np.array([value for row in read_numbers(bval_path) for value in row])
    bvecs, by_rows = _directions(bvec_path)
    if by_rows:
        image.notes.append(
            f"{bvec_path.name} holds a row per volume rather than FSL's three rows; it was read as such."
        )
    for path, count, what in ((bval_path, len(bvals), "b-values"), (bvec_path, len(bvecs), "directions")):
        if count != image.n_volumes:
            msg = f"{path.name} has {count} {what} but {image.path.name} has {image.n_volumes} volumes."
            lost = " and that those of b0 volumes were kept" if count < image.n_volumes else ""
            raise GradientError(msg, f"Check that they belong together{lost}.")
    try:
        return GradientTable.from_fsl(bvals, bvecs, image.affine, b0_threshold)
    except GradientError as error:
        msg = f"{bval_path.name}, {bvec_path.name}: {error.message}"
        raise GradientError(msg, error.hint) from error


def _beside(image: ImageFile, given: str, kind: str) -> Path:
    if given:
        path = Path(given)
        if not path.is_file():
            msg = f"{path} does not exist, or is not a file; expected the {kind} file of {image.path.name}."
            raise GradientError(msg, f"Check the name, or leave it out to use {image.stem}.{kind}.")
        return path
    for extension in (kind, f"{kind}s"):
        path = image.path.with_name(f"{image.stem}.{extension}")
        if path.is_file():
            return path
    msg = f"{image.path.name} has no {image.stem}.{kind} beside it, in {image.path.parent}."
    raise GradientError(msg, f"Put it there, or name it with --{kind}.")


def read_numbers(path: Path) -> list[list[float]]:
    """Rows of numbers; every row has at least one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path.name} is not a text file."
        raise GradientError(msg, "Choose the file that dcm2niix or FSL wrote.") from error
    except OSError as error:
        msg = f"{path} could not be read: {error.strerror}."
        raise GradientError(msg, "Check its permissions.") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        row: list[float] = []
        for word in line.split():
            try:
                value = float(word)
            except ValueError as error:
                msg = f"{path.name} has '{word[:40]}' in line {number}; expected numbers separated by spaces."
                raise GradientError(msg, "Correct that line.") from error
            if not math.isfinite(value):
                msg = f"{path.name} has '{word}' in line {number}, column {len(row) + 1}; expected a finite number."
                raise GradientError(msg, "Correct it, or remove that volume from the image, bval and bvec.")
            row.append(value)
        if row:
            rows.append(row)
    if not rows:
        msg = f"{path.name} is empty; expected one number per volume."
        raise GradientError(msg, "Convert the scan again from DICOM, so that it is written.")
    return rows


def _directions(path: Path) -> tuple[NDArray[np.float64], bool]:
    """Directions, shape (N, 3), and whether the file holds them as three columns rather than FSL's three rows."""
    rows = read_numbers(path)
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        odd = next(i for i, n in enumerate(lengths) if n != lengths[0])
        msg = f"{path.name} has {lengths[0]} numbers in row 1 but {lengths[odd]} in row {odd + 1}."
        raise GradientError(msg, "Rows must be equally long: correct the file.")
    table = np.array(rows)
    if table.shape[0] == 3:
        return table.T, False
    if table.shape[1] == 3:
        return table, True
    msg = f"{path.name} has {table.shape[0]} rows and {table.shape[1]} columns; expected three rows or three columns."
    raise GradientError(msg, "Choose the bvec file of this scan.")

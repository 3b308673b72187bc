"""Files: scans, masks and images in; maps, tracts and converted scans out."""

from __future__ import annotations

from DiffusionFMLib.io.dicom import Series
from DiffusionFMLib.io.digest import digest_of
from DiffusionFMLib.io.reading import (
    Image,
    LabelImage,
    read_acquisition,
    read_image,
    read_labels,
    read_mask,
    scan_files,
)
from DiffusionFMLib.io.tracts import read_tracts, write_tracts
from DiffusionFMLib.io.writing import write_acquisition, written_files

__all__ = [
    "Image",
    "LabelImage",
    "Series",
    "digest_of",
    "read_acquisition",
    "read_image",
    "read_labels",
    "read_mask",
    "read_tracts",
    "scan_files",
    "write_acquisition",
    "write_tracts",
    "written_files",
]

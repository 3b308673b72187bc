"""The matrix of which regions a scan's streamlines join, from files to files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib import __version__
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.jobfiles import CONNECT, READ, WRITE, announce_file
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.settings import ConnectomeSettings

if TYPE_CHECKING:
    from DiffusionFMLib.connectome import Connectome


def connectome(settings: ConnectomeSettings, report: JobReport) -> dict[str, Any]:
    """Count the streamlines between regions, and write the matrices; returns plain JSON.

    Raises
    ------
    DiffusionFMError
        If a file cannot be read, the files do not fit each other, or nothing can be written.
    """
    from DiffusionFMLib.connectome import connect, sample_within
    from DiffusionFMLib.io import outputs, read_image, read_labels, read_tracts

    if not settings.tracts:
        msg = "No streamlines were given."
        raise SettingsError(msg, "Name the .trx, .tck or .trk file that track wrote.")
    if not settings.labels:
        msg = "No label image was given."
        raise SettingsError(msg, "Name an image whose values are numbers of regions (--labels).")
    tracts, labels = Path(settings.tracts).expanduser(), Path(settings.labels).expanduser()
    files = {"tracts": tracts, "labels": labels}
    out = outputs.output_folder(settings.out or str(tracts.parent))
    report.enter(READ)
    lines, along = read_tracts(tracts)
    regions = read_labels(labels, report)
    mean_of = "" if along is None else "fa"
    if settings.map:
        files["map"] = map = Path(settings.map).expanduser()
        along, mean_of = sample_within(read_image(map, report), lines, map.name), _map_name(map)
    report.enter(CONNECT)
    found = connect(lines, regions, settings.radius, along)

    report.enter(WRITE)
    announce_file(report, outputs.write_dataset_description(out), "sidecar", "dataset_description")
    about = {
        "Regions": found.labels.tolist(),
        "Streamlines": found.streamlines,
        "Assigned": found.assigned,
        "AssignedFraction": round(found.assigned / found.streamlines, 6),
        "Provenance": _provenance(settings, files),
    }
    written = []
    for name, (matrix, description, unit) in _matrices(found, mean_of).items():
        path = out / _file_name(tracts, labels, name)
        # the sidecar last, and the old one gone before: it never describes another table
        outputs.sidecar_path(path).unlink(missing_ok=True)
        outputs.write_bytes(path, _table(matrix, found.labels))
        outputs.write_sidecar(path, {"Description": description, "Units": unit, **about})
        announce_file(report, path, "matrix", name)
        written.append(path.name)
    report.progress(1, 1, WRITE)
    return {
        "name": tracts.name, "out": str(out), "files": written, "regions": len(found.labels),
        "count": found.streamlines, "assigned": found.assigned,
    }  # fmt: skip


def _matrices(found: Connectome, mean_of: str) -> dict[str, tuple[NDArray[Any], str, str]]:
    """Matrices by their names in file names, with descriptions and units."""
    order = "Rows and columns are the regions of the header, in its order."
    matrices: dict[str, tuple[NDArray[Any], str, str]] = {
        "count": (
            found.counts,
            f"Number of streamlines with an end in one region and an end in the other; on the diagonal, with both ends "
            f"in one region. {order}",
            "1",
        ),
        "length": (found.lengths, f"Mean length of these streamlines; n/a where there are none. {order}", "mm"),
    }
    if found.means is not None:
        description = f"Mean of {mean_of} along these streamlines; n/a where there are none. {order}"
        matrices[f"mean{mean_of}"] = (found.means, description, "that of the map")
    return matrices


def _table(matrix: NDArray[Any], labels: NDArray[np.int32]) -> bytes:
    """Tab-separated values with the labels as header."""
    rows = ["\t".join(map(_text, row)) for row in matrix.tolist()]
    return "\n".join(["\t".join(map(str, labels.tolist())), *rows, ""]).encode()


def _text(value: float) -> str:
    """A number as text; n/a, as BIDS has it, where there is none."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.7g}" if math.isfinite(value) else "n/a"


def _file_name(tracts: Path, labels: Path, measure: str) -> str:
    """Name of a matrix, by the entities of the streamlines' own: ``..._seg-aal_meas-count_desc-..._connectome.tsv``."""
    from DiffusionFMLib.io import outputs

    scan, desc, tracker = tracts.stem.removesuffix("_tractography").partition("_desc-")
    return f"{scan}_seg-{outputs.entity_value(str(labels))}_meas-{measure}{desc}{tracker}_connectome.tsv"


def _map_name(map: Path) -> str:
    """What a map holds, by its file's name: ``fa``."""
    from DiffusionFMLib.io import outputs

    param = re.search(r"_param-([A-Za-z0-9]+)", map.name)
    return param[1] if param else outputs.entity_value(str(map))


def _provenance(settings: ConnectomeSettings, files: Mapping[str, Path]) -> dict[str, Any]:
    """What the matrices' sidecars say of how they were made; plain JSON."""
    inputs = {
        what: {"Name": path.name, "Sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for what, path in files.items()
    }
    return {"settings": {"radius": settings.radius}, "inputs": inputs, "version": __version__}

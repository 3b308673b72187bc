"""Jobs that make scans: another file format, or a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DiffusionFMLib.errors import OutputError, SettingsError
from DiffusionFMLib.jobfiles import WRITE, announce_file, announce_map, read_scan
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import ConvertSettings, SimulateSettings


def convert(settings: ConvertSettings, report: JobReport, session: Session) -> dict[str, Any]:
    """Write a scan as NIfTI, with its gradients beside it.

    Raises
    ------
    DiffusionFMError
        If the scan cannot be read, or a file would be written over.
    """
    from DiffusionFMLib.io import outputs, scan_files, write_acquisition, written_files

    path = Path(settings.out)
    outputs.output_folder(str(path.parent) if settings.out else "")
    for target in written_files(path):
        if any(target.exists() and target.samefile(source) for source in scan_files(settings)):
            msg = f"{target.name} belongs to the scan itself: it would be written over."
            raise SettingsError(msg, "Choose another name or folder to convert to.")
        if target.exists():
            msg = f"{target} is there already: it would be written over."
            raise OutputError(msg, "Remove it, or choose another name or folder to convert to.")
    acquisition = read_scan(settings, report, session)
    report.enter(WRITE)
    written = write_acquisition(acquisition, path)
    for file in written:
        announce_file(report, file, "image" if file == path else "sidecar", file.name)
    report.progress(1, 1, WRITE)
    return {"name": acquisition.name, "out": str(path.parent), "files": [file.name for file in written]}


def simulate_scan(settings: SimulateSettings, report: JobReport) -> dict[str, Any]:
    """Simulate a scan, and write it with the truth that it was made from."""
    from DiffusionFMLib.io import outputs, write_acquisition
    from DiffusionFMLib.physics import DKI, DTI
    from DiffusionFMLib.simulation import simulate

    out = outputs.output_folder(settings.out)
    simulated = simulate(settings, report)
    acquisition = simulated.acquisition
    truth = [(DTI.label, *item) for item in simulated.truth.items()]
    truth += [(DKI.label, *item) for item in simulated.kurtosis.items()]
    report.enter(WRITE)
    dwi = out / f"{acquisition.name}.nii.gz"
    written = write_acquisition(acquisition, dwi)
    for file in written:
        announce_file(report, file, "image" if file == dwi else "sidecar", file.name)
    for done, (label, name, map) in enumerate(truth):
        report.progress(done, len(truth), WRITE)
        path = outputs.write_map(map, outputs.map_path(out, acquisition.name, label, name, "truth"))
        announce_map(report, map, path, None)
        written.append(path)
    # an earlier scan of other shells may have left truth that is not this one's
    for earlier in out.glob(f"{acquisition.name}_model-*_desc-truth_dwimap.nii.gz"):
        if earlier not in written:
            outputs.sidecar_path(earlier).unlink(missing_ok=True)
            earlier.unlink()
    report.progress(1, 1, WRITE)
    return {"name": acquisition.name, "out": str(out), "dwi": str(dwi), "files": [file.name for file in written]}

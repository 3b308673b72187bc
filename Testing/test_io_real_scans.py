"""Every real scan at hand is read, and what is odd about it is said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition, read_image
from DiffusionFMLib.settings import ScanSettings

SCANS = {
    "test/mrtrix_msmt_3shell_crop/dwi": ("b 0 700 1200 2800: 6+16+30+50", []),
    "test/philips_bangalore_32dir/dwi": ("b 0 1000: 1+32", []),
    "test/siemens_xa30_b2500_APPA_T1/dwi_AP": ("b 0 2500: 1+20", []),
    "test/siemens_xa30_b2500_APPA_T1/dwi_PA": ("b 0 2500: 1+20", []),
    "train/niivue_dsistudio_b2000/dwi": ("b 0 2000: 1+20", []),
    "train/philips_elition_16dir_T1/dwi": ("b 0 1000: 1+16", []),
    "train/philips_ukb_mb3_partial/dwi": ("b 0 1000: 5+12", []),
    "train/philips_vanderbilt_15dir_b2000/dwi": ("b 0 2000: 1+15", []),
    "train/siemens_decubitus_b1000_T1/dwi_HFS": ("b 0 1000: 1+12", ["large-voxels"]),
    "train/siemens_decubitus_b1000_T1/dwi_b": ("b 0 1000: 1+12", ["large-voxels"]),
    "train/toshiba_galan_b1500/dwi_10006_DTI_ALL_20d": ("b 0 1500: 1+12", []),
    "train/toshiba_galan_b1500/dwi_7006_DTI_ortho": ("b 0 1500: 1+12", []),
    "train/uih_16dir_b950_T1/dwi_AP": ("b 0 928: 1+16", ["large-voxels"]),
    "train/uih_16dir_b950_T1/dwi_PA": ("b 0 930: 1+16", ["large-voxels"]),
}


@pytest.mark.parametrize("name", SCANS)
def test_a_real_scan(name: str, scans: Path) -> None:
    path, report = scans / f"{name}.nii.gz", SilentReport()
    acquisition = read_acquisition(ScanSettings(dwi=str(path)), report)
    summary, codes = SCANS[name]
    assert acquisition.gtab.summary() == summary
    assert [code for code, _ in report.warnings] == codes
    image = nib.load(path)
    np.testing.assert_allclose(acquisition.affine, image.affine)
    middle = image.shape[3] // 2
    np.testing.assert_array_equal(acquisition.signal[..., middle], np.asarray(image.dataobj[..., middle], np.float32))


@pytest.mark.skipif(shutil.which("mrinfo") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("name", [n for n in SCANS if "mrtrix" not in n and "uih" not in n])
def test_mrtrix_finds_the_same_directions(name: str, scans: Path) -> None:
    path = scans / f"{name}.nii.gz"
    tables = [str(scans / f"{name}.{kind}") for kind in ("bvec", "bval")]
    command = ["mrinfo", str(path), "-fslgrad", *tables, "-dwgrad"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grad = np.array([[float(word) for word in line.split()] for line in out.splitlines() if line.strip()])
    gtab = read_acquisition(ScanSettings(dwi=str(path)), SilentReport()).gtab
    weighted = ~gtab.b0_mask
    np.testing.assert_allclose(gtab.bvecs[weighted], grad[weighted, :3], atol=2e-3)


def test_a_b0_that_says_b_is_1_is_a_b0_and_noted(scans: Path) -> None:
    path = scans / "train" / "uih_16dir_b950_T1" / "dwi_AP.nii.gz"
    gtab = read_acquisition(ScanSettings(dwi=str(path)), SilentReport()).gtab
    assert np.flatnonzero(gtab.b0_mask).tolist() == [0]
    assert not gtab.bvecs[0].any()


def test_a_series_of_one_direction_is_a_protocol_error(scans: Path) -> None:
    path = scans / "train" / "philips_elition_16dir_T1" / "dwi_series2301.nii.gz"
    with pytest.raises(ProtocolError, match=r"dwi_series2301\.nii\.gz has 1 .* one direction only"):
        read_acquisition(ScanSettings(dwi=str(path)), SilentReport())


@pytest.mark.parametrize(
    "name",
    [
        "test/siemens_xa30_b2500_APPA_T1/T1w",
        "train/philips_elition_16dir_T1/T1w",
        "train/siemens_decubitus_b1000_T1/T1_HFS",
        "train/tractseg_peaks_2.5mm/FA",
        "train/qmrlab_noddi_maps_2mm/ficvf",
    ],
)
def test_a_real_image(name: str, scans: Path) -> None:
    image = read_image(scans / f"{name}.nii.gz")
    np.testing.assert_allclose(image.data, nib.load(scans / f"{name}.nii.gz").get_fdata(dtype=np.float32), rtol=1e-6)

"""The quality summary: what is planted is found, and good scans raise no alarm."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from brain_scans import NOISE, head, load_scan

from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.quality import MOTION_MM, summarise


def summary(scan, check=False):
    return summarise(scan, SilentReport(), check=check)


@pytest.fixture(scope="module")
def good():
    scan, truth = head(count=16, n_b0=2)
    return scan.with_mask(truth)


def test_good_scan_is_green_and_serialises(good):
    found = summary(good, check=True)
    assert (found.light, found.findings) == ("green", ())
    assert found.gradients.verdict == "consistent"
    assert found.facts == "50x56x44, 4 x 4 x 4 mm, b 0 1000: 2+16"
    assert [(s.bval, s.volumes, s.directions) for s in found.shells] == [(0, 2, 0), (1000, 16, 16)]
    assert found.mask_ml == pytest.approx(good.mask.sum() * 64 / 1000, abs=0.1)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["gradients"]["verdict"] == "consistent"


@pytest.mark.parametrize("n_b0", [1, 2])
def test_snr_is_measured(n_b0):
    scan, truth = head(count=16, n_b0=n_b0)
    found = summary(scan.with_mask(truth))
    assert found.snr == pytest.approx(1 / NOISE, rel=0.15)
    assert found.noise_correlation == pytest.approx((0, 0, 0), abs=0.05)


def test_low_snr_is_a_finding(good):
    rng = np.random.default_rng(3)
    noisy = np.hypot(good.signal + rng.normal(0, 0.2, good.signal.shape), rng.normal(0, 0.2, good.signal.shape))
    found = summary(replace(good, signal=noisy))
    assert found.light != "green"
    assert any("SNR" in finding for finding in found.findings)


def test_dropped_slices_are_found(good):
    signal = good.signal.copy()
    signal[:, :, 20, 5] *= 0.6
    signal[:, :, 12:28:2, 9] *= 0.5
    found = summary(replace(good, signal=signal))
    planted = {(5, 20)} | {(9, k) for k in range(12, 28, 2)}
    assert {(o.volume, o.slice) for o in found.outliers} == planted
    assert "volume(s) 5, 9" in " ".join(found.findings)
    assert found.outliers[0].drop == pytest.approx(0.4, abs=0.05)


def test_motion_is_estimated():
    turns = np.broadcast_to(np.eye(3), (17, 3, 3)).copy()
    angle = np.deg2rad(4.0)
    turns[6, :2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan, truth = head(turns=turns)
    found = summary(scan.with_mask(truth))
    # 4 degrees at 70 mm
    assert found.motion_mm == pytest.approx(4.9, abs=1.5)
    assert found.motion_median_mm < 1.5
    assert found.light == "amber"


def test_protocol_findings(good):
    def words(scan):
        return " ".join(summary(scan).findings)

    assert "reach 5000" in words(replace(good, gtab=GradientTable(good.gtab.bvals * 5, good.gtab.bvecs)))
    few = good.subset(np.arange(8), "fewer")
    assert "only 6 gradient directions" in words(few)
    # three directions are the generative prior's least
    assert summary(good.subset(np.arange(5), "fewer")).light == "amber"
    assert summary(good.subset(np.arange(4), "fewer")).light == "red"
    assert "no b0" in words(good.subset(np.arange(2, 18), "without b0"))
    assert "coarse" in words(
        replace(good, affine=np.diag([5.0, 5.0, 5.0, 1.0]), mask=good.mask & (good.mask.cumsum(2) < 9))
    )


def test_wrong_gradients_are_red(good):
    flipped = replace(good, gtab=GradientTable(good.gtab.bvals, good.gtab.bvecs * [-1, 1, 1]))
    found = summary(flipped, check=True)
    assert found.light == "red"
    assert "x axis" in found.findings[0]


@pytest.mark.parametrize(
    ("name", "thick"),
    [
        ("train/toshiba_galan_b1500/dwi_10006_DTI_ALL_20d", False),
        ("train/uih_16dir_b950_T1/dwi_AP", True),
        ("train/siemens_decubitus_b1000_T1/dwi_b", True),
        ("train/philips_vanderbilt_15dir_b2000/dwi", False),
    ],
)
def test_in_a_good_real_scan_nothing_is_found_but_thick_slices(scans, name, thick):
    found = summarise(load_scan(scans / name), SilentReport())
    assert found.light == ("amber" if thick else "green")
    assert ["coarse" in finding for finding in found.findings] == [True] * thick
    assert found.motion_mm < MOTION_MM
    assert 20 < found.snr < 100


def test_directions_that_cannot_be_checked_are_amber(good):
    few = good.subset(np.arange(10), "fewer")
    found = summary(few, check=True)
    assert found.gradients.verdict == "undetermined"
    assert found.light == "amber"
    assert found.gradients.sentence in found.findings


@pytest.mark.parametrize("signal", [np.zeros_like, lambda s: -np.abs(s) - 1])
def test_signal_without_a_positive_value_is_red(good, signal):
    found = summary(replace(good, signal=signal(good.signal)), check=True)
    assert found.light == "red"
    assert found.findings[0] == "No value of the signal is above zero: there is nothing to measure."


def test_a_header_without_orientation_is_amber(tmp_path):
    import nibabel as nib

    from DiffusionFMLib.session import Session
    from DiffusionFMLib.settings import ScanSettings

    scan, _ = head(count=16, n_b0=2)
    lights = {}
    for code in (0, 1):
        image = nib.Nifti1Image(scan.signal, scan.affine)
        image.set_sform(scan.affine if code else None, code)
        image.set_qform(scan.affine if code else None, code)
        path = tmp_path / f"scan{code}.nii"
        nib.save(image, path)
        np.savetxt(path.with_suffix(".bval"), scan.gtab.bvals[None])
        np.savetxt(path.with_suffix(".bvec"), scan.gtab.bvecs.T)
        session = Session()
        session.read(ScanSettings(dwi=str(path)), SilentReport())
        lights[code] = session.quality(SilentReport())
    assert not any("left and right are not known" in finding for finding in lights[1].findings)
    assert any("left and right are not known" in finding for finding in lights[0].findings)
    assert lights[0].light != "green"

"""The automatic brain mask: against truth on phantoms, and plausible on every real scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from brain_scans import head, load_scan

from DiffusionFMLib.preprocessing.masking import brain_mask, mask_doubt

# ml, from looking at each; a mask with eyes and jaw or without the middle of the brain is outside
REAL = {
    "train/toshiba_galan_b1500/dwi_10006_DTI_ALL_20d": (1220, 1400),
    "train/uih_16dir_b950_T1/dwi_AP": (960, 1110),
    "train/siemens_decubitus_b1000_T1/dwi_b": (1380, 1570),
    "train/philips_ukb_mb3_partial/dwi": (1010, 1150),
    "train/niivue_dsistudio_b2000/dwi": (1360, 1540),
    "test/philips_bangalore_32dir/dwi": (1370, 1550),
    "test/siemens_xa30_b2500_APPA_T1/dwi_AP": (1320, 1500),
}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(
    ("voxel", "shape"),
    [
        ((4.0, 4.0, 4.0), (50, 56, 44)),
        ((2.5, 2.5, 5.5), (80, 90, 32)),
    ],
)
def test_finds_the_brain_and_leaves_eyes_and_scalp(voxel, shape):
    scan, truth = head(count=6, voxel=voxel, shape=shape)
    mask = brain_mask(scan)
    assert overlap(mask, truth) > 0.95
    # eyes and scalp lie beyond the true brain; voxels on its edge may count either way
    assert (mask & ~truth).sum() < 0.06 * truth.sum()


def test_ventricle_belongs_to_the_brain():
    scan, _ = head(count=6)
    middle = tuple(np.array(scan.shape) // 2)
    assert scan.signal[(*middle, -1)] < 0.3 * scan.signal[(*middle, 0)]
    assert brain_mask(scan)[middle]


def test_keeps_the_middle_of_the_brain_where_the_coil_is_weak():
    scan, truth = head(count=6, coil=0.75)
    assert overlap(brain_mask(scan), truth) > 0.93


def test_slab_is_masked_to_its_edges():
    scan, truth = head(count=6)
    slab = replace(scan, signal=scan.signal[:, :, 18:30])
    mask = brain_mask(slab)
    assert overlap(mask, truth[:, :, 18:30]) > 0.95
    assert mask[:, :, 0].sum() > 0.9 * truth[:, :, 18].sum()
    assert mask_doubt(slab, mask) == ""


def test_field_of_view_without_background_is_taken_whole():
    scan, truth = head(count=6)
    crop = replace(scan, signal=scan.signal[19:31, 30:40, 16:26])
    assert truth[19:31, 30:40, 16:26].all()
    assert brain_mask(crop).all()


def test_noise_as_bright_as_tissue_at_high_b_is_not_taken_for_it():
    scan, truth = head(count=6)
    weighted = ~scan.gtab.b0_mask
    signal = scan.signal.copy()
    typical = np.median(signal[truth][:, weighted])
    floor = np.random.default_rng(0).rayleigh(0.3 * typical, (*scan.shape, int(weighted.sum())))
    signal[..., weighted] = np.hypot(signal[..., weighted], floor)
    assert overlap(brain_mask(replace(scan, signal=signal)), truth) > 0.9


def test_scan_without_signal_has_an_empty_mask():
    scan, _ = head(count=6)
    empty = replace(scan, signal=np.zeros_like(scan.signal))
    mask = brain_mask(empty)
    assert not mask.any()
    assert "empty" in mask_doubt(empty, mask)


def test_implausible_masks_are_doubted():
    scan, truth = head(count=6)
    assert mask_doubt(scan, truth) == ""
    assert "more than any human brain" in mask_doubt(scan, np.ones(scan.shape, bool))
    small = np.zeros(scan.shape, bool)
    small[25:30, 25:30, 20:25] = True
    assert "only" in mask_doubt(scan, small)


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_scan(scans, name):
    scan = load_scan(scans / name, volumes=6)
    mask = brain_mask(scan)
    low, high = REAL[name]
    assert low < mask.sum() * scan.voxel_volume / 1000 < high
    assert mask_doubt(scan, mask) == ""


def test_real_crop_of_brain_is_taken_whole(scans):
    scan = load_scan(scans / "test/mrtrix_msmt_3shell_crop/dwi")
    assert brain_mask(scan).all()

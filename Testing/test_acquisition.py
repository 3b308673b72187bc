"""The acquisition: validation at construction, and that nothing changes without a note."""

from __future__ import annotations

import numpy as np
import pytest

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.gradients import GradientTable

GTAB = GradientTable([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
SIGNAL = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
AFFINE = np.diag([-2.0, 1.5, 3, 1])


def test_facts() -> None:
    acquisition = Acquisition(SIGNAL, AFFINE, GTAB, name="scan")
    assert acquisition.shape == (2, 2, 2)
    np.testing.assert_allclose(acquisition.voxel_sizes, [2, 1.5, 3])
    assert acquisition.voxel_volume == pytest.approx(9)
    assert repr(acquisition) == "Acquisition(scan: 2x2x2, 2 x 1.5 x 3 mm, b 0 1000: 1+2)"


def test_float32_is_taken_without_a_copy() -> None:
    assert Acquisition(SIGNAL, AFFINE, GTAB).signal is SIGNAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signal": SIGNAL[..., 0]}, "has 3 dimensions"),
        ({"signal": SIGNAL[..., :2]}, "has 2 volumes but the gradient table has 3"),
        ({"signal": np.where(SIGNAL == 4, np.nan, SIGNAL)}, r"volume\(s\) 1 \(the first is 0\)"),
        ({"signal": np.where(SIGNAL == 5, np.inf, SIGNAL)}, r"volume\(s\) 2 \(the first is 0\)"),
        ({"affine": np.zeros((4, 4))}, "no usable orientation"),
        ({"affine": np.eye(3)}, "no usable orientation"),
        ({"affine": np.full((4, 4), np.nan)}, "no usable orientation"),
        ({"mask": np.ones((2, 2, 3), bool)}, r"mask has shape \(2, 2, 3\)"),
    ],
)
def test_rejected(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Acquisition(**{"signal": SIGNAL, "affine": AFFINE, "gtab": GTAB, **change})
    assert caught.value.hint


def test_a_subset_keeps_volumes_and_gradients_together_and_is_noted() -> None:
    part = Acquisition(SIGNAL, AFFINE, GTAB).subset([2, 0], "Two volumes were taken.")
    np.testing.assert_array_equal(part.signal, SIGNAL[..., [2, 0]])
    assert part.gtab.bvals.tolist() == [1000, 0]
    assert part.notes == ("Two volumes were taken.",)


def test_another_mask_is_checked_but_not_the_signal_again() -> None:
    acquisition = Acquisition(SIGNAL.copy(), AFFINE, GTAB)
    with pytest.raises(InputError, match=r"mask has shape \(2, 2, 3\)"):
        acquisition.with_mask(np.ones((2, 2, 3)))
    # only who looks at it notices
    acquisition.signal[0] = np.nan
    assert acquisition.with_mask(np.ones((2, 2, 2))).mask is not None


def test_another_mask_leaves_the_scan_as_it_is() -> None:
    before = Acquisition(SIGNAL, AFFINE, GTAB)
    after = before.with_mask(np.ones((2, 2, 2)))
    assert before.mask is None
    assert after.mask.dtype == bool
    assert after.signal is before.signal


def test_many_broken_volumes_are_counted() -> None:
    gtab = GradientTable(np.r_[0, np.full(8, 1000)], np.vstack([np.zeros(3), np.tile([1.0, 0, 0], (8, 1))]))
    with pytest.raises(InputError, match=r"in volume\(s\) 0, 1, 2, 3, 4, \.\.\. \(9 in all\) \(the first is 0\)"):
        Acquisition(np.full((1, 1, 1, 9), np.nan, np.float32), AFFINE, gtab)

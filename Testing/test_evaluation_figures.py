"""What the evaluation draws and counts of tracts: sides, slices, overlap and connectomes, where the answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from figures import Slice
from tracts import PARCELS, Tracked, parcellation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import LabelImage
from DiffusionFMLib.settings import SimulateSettings
from DiffusionFMLib.simulation.scanner import simulate

SHAPE = (24, 12, 10)


@pytest.mark.parametrize("flip", [1, -1])
def test_slices_show_each_side_where_it_is(flip: int) -> None:
    affine = np.diag([2.0 * flip, 2, 3, 1])
    mask = np.zeros((9, 8, 5), bool)
    mask[2:7, 1:7, :] = True
    values = np.zeros(mask.shape)
    # the patient's right is where x in RAS is low
    right = 2 if flip > 0 else 6
    values[right, 6, 3] = 1
    image = Slice(mask, affine, 3).of(values[mask])
    assert image.shape == (6, 5)
    assert np.argwhere(image).tolist() == [[5, 0]]
    assert not Slice(mask, affine, 2).of(values[mask]).any()


def along(axis: int) -> tuple[NDArray[np.float32], Acquisition, LabelImage]:
    """Fibres along an axis of a box, and its two ends as regions."""
    tensor = np.zeros((*SHAPE, 6), np.float32)
    tensor[..., [0, 3, 5]] = 0.3e-3
    tensor[..., (0, 3, 5)[axis]] = 1.7e-3
    affine = np.diag([2.0, 2, 2, 1])
    gtab = GradientTable(np.array([0.0]), np.zeros((1, 3)))
    scan = Acquisition(np.ones((*SHAPE, 1), np.float32), affine, gtab, np.ones(SHAPE, bool))
    labels = np.zeros(SHAPE, np.int32)
    labels[:3], labels[-3:] = 1, 2
    return tensor, scan, LabelImage(labels, affine, "ends")


def test_tracts_agree_with_themselves_and_not_with_others() -> None:
    straight = Tracked.of(*along(0))
    assert straight.overlap(straight) == pytest.approx(1)
    assert straight.counts[0, 1] == len(straight.tracts) > 100
    across = Tracked.of(*along(1))
    assert across.counts[0, 1] == 0
    assert across.overlap(straight) < 0.9
    three = np.array([[0, 5, 0], [5, 0, 90], [0, 90, 0]])
    other = np.array([[0, 90, 5], [90, 0, 0], [5, 0, 0]])
    one, same, different = (Tracked(straight.tracts, straight.density, c) for c in (three, 2 * three, other))
    assert one.likeness(same) > 0.98
    assert one.likeness(different) < 0.5


def test_parcels_fill_grey_matter_left_before_right() -> None:
    brain = simulate(SimulateSettings(shells="1000:6", voxel_size=5), SilentReport())
    parcels = parcellation(brain)
    grey = brain.truth["tissue"].data[..., 1] > 0.5
    np.testing.assert_array_equal(parcels.data > 0, grey)
    places, label = np.argwhere(grey) @ parcels.affine[:3, :3].T, parcels.data[grey]
    left, right = np.split(np.array([places[label == n].mean(0) for n in range(1, PARCELS + 1)]), 2)
    assert left[:, 0].max() <= right[:, 0].min()
    for side in (left, right):
        assert (np.diff(side[:, 1]) >= 0).all()

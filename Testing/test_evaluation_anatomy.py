"""How fine white matter is, where the answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from anatomy import surrounded, turns


def test_directions_turn_along_the_axis_that_they_turn_along() -> None:
    angle = np.radians(10.0) * np.arange(6)
    v1 = np.zeros((4, 6, 5, 3))
    v1[..., 0], v1[..., 1] = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
    # a direction has no sign
    v1[:, 1::2] *= -1
    white = np.ones(v1.shape[:3], bool)
    white[0] = False
    along = turns(v1, white)
    assert [len(one) for one in along] == [2 * 6 * 5, 3 * 5 * 5, 3 * 6 * 4]
    assert [np.median(one) for one in along] == pytest.approx([0, 10, 0], abs=1e-4)


def test_what_is_surrounded_is_counted() -> None:
    white = np.zeros((5, 5, 5), bool)
    white[1:4, 1:4, 1:4] = True
    assert surrounded(white) == pytest.approx(1 / 27)
    # the image ends there: nobody knows what follows
    assert surrounded(np.ones((3, 3, 3), bool)) == pytest.approx(1 / 27)

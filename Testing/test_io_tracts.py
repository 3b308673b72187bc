"""Streamlines in TRX, TCK and TRK: round trips, FA at each point, and what other libraries read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_files import AXES, SHAPE, affine_of
from trx import trx_file_memmap

from DiffusionFMLib.errors import InputError, OutputError
from DiffusionFMLib.io import read_tracts, write_tracts

AFFINE = affine_of(AXES["oblique left-handed"])


def streamlines(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(1)
    lines = [random.normal(0, 40, (n, 3)).astype(np.float32) for n in random.integers(2, 30, count)]
    return lines, random.random(sum(map(len, lines))).astype(np.float32)


@pytest.mark.parametrize("extension", ["trx", "tck", "trk"])
@pytest.mark.parametrize("count", [0, 1, 25])
def test_round_trip_in_ras(extension: str, count: int, tmp_path: Path) -> None:
    lines, fa = streamlines(count)
    path = write_tracts(tmp_path / f"tracts.{extension}", lines, AFFINE, SHAPE, fa)
    back, back_fa = read_tracts(path)
    assert len(back) == count
    for one, other in zip(back, lines, strict=True):
        # TRK stores points relative to the grid, which rounds them
        np.testing.assert_allclose(one, other, atol=0 if extension != "trk" else 2e-5)
    if extension != "tck" and count:
        np.testing.assert_array_equal(back_fa, fa)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", ["trx", "tck", "trk"])
def test_the_same_tracts_are_the_same_bytes(extension: str, tmp_path: Path) -> None:
    lines, fa = streamlines(10)
    one = write_tracts(tmp_path / f"a.{extension}", lines, AFFINE, SHAPE, fa).read_bytes()
    assert one == write_tracts(tmp_path / f"b.{extension}", lines, AFFINE, SHAPE, fa).read_bytes()


def test_trx_says_where_it_belongs(tmp_path: Path) -> None:
    lines, fa = streamlines(5)
    trx = trx_file_memmap.load(str(write_tracts(tmp_path / "tracts.trx", lines, AFFINE, SHAPE, fa)))
    np.testing.assert_allclose(trx.header["VOXEL_TO_RASMM"], AFFINE, atol=1e-6)
    assert list(trx.header["DIMENSIONS"]) == list(SHAPE)
    assert trx.streamlines._data.dtype == np.float32
    assert trx.data_per_vertex["fa"].get_data().shape == (len(fa), 1)
    trx.close()


def test_trk_says_where_it_belongs(tmp_path: Path) -> None:
    lines, fa = streamlines(5)
    trk = nib.streamlines.load(write_tracts(tmp_path / "tracts.trk", lines, AFFINE, SHAPE, fa))
    np.testing.assert_allclose(trk.affine, AFFINE, atol=1e-6)
    assert trk.header["dimensions"].tolist() == list(SHAPE)
    assert trk.header["voxel_order"] == b"LAS"


def test_an_unknown_extension_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"tracts\.vtk is of no known format"):
        write_tracts(tmp_path / "tracts.vtk", *streamlines(1)[:1], AFFINE, SHAPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", ["trx", "tck", "trk"])
def test_damaged_tracts(extension: str, tmp_path: Path) -> None:
    (tmp_path / f"tracts.{extension}").write_bytes(b"not a streamline")
    with pytest.raises(InputError, match="not a readable file of streamlines"):
        read_tracts(tmp_path / f"tracts.{extension}")

"""Writing: maps with sidecars, whole or absent, the same bytes each time, and reused when nothing changed."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_files import AXES, SHAPE, affine_of

from DiffusionFMLib.errors import InputError, OutputError
from DiffusionFMLib.io import compressed, outputs
from DiffusionFMLib.maps import STATUS, MapSpec, ParameterMap, standard_deviation, standard_error

AFFINE = affine_of(AXES["oblique left-handed"])
FA = MapSpec("fa", "FA", "", "Fractional anisotropy.", (0.0, 1.0))
V1 = MapSpec("v1", "V1", "", "Principal direction.", (-1.0, 1.0), "direction", ("x", "y", "z"))
KEY = "0" * 64


def parameter_map(spec: MapSpec = FA, key: str = KEY) -> ParameterMap:
    shape = (*SHAPE, len(spec.components)) if spec.components else SHAPE
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    return ParameterMap(spec, data, AFFINE, {"key": key, "notes": ["Größe"]})


def write(folder: Path, map: ParameterMap | None = None) -> Path:
    made = map or parameter_map()
    return outputs.write_map(made, outputs.map_path(folder, "sub-01", "tensor", made.spec.name, "wls"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is written -------------------------------------------------------------------------------------------


def test_a_map_and_its_sidecar(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path.name == "sub-01_model-tensor_param-fa_desc-wls_dwimap.nii.gz"
    image = nib.load(path)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), parameter_map().data)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert image.get_data_dtype() == np.float32
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    sidecar = json.loads((tmp_path / path.name.replace(".nii.gz", ".json")).read_text(encoding="utf-8"))
    assert sidecar["Description"] == "Fractional anisotropy."
    assert sidecar["Units"] == "1"
    assert sidecar["Provenance"] == {"key": KEY, "notes": ["Größe"]}


def test_vector_maps_are_4d_and_name_their_components(tmp_path: Path) -> None:
    path = write(tmp_path, parameter_map(V1))
    assert nib.load(path).shape == (*SHAPE, 3)
    back = outputs.read_map(path)
    assert back.spec == V1
    np.testing.assert_array_equal(back.data, parameter_map(V1).data)


def test_a_map_and_how_sure_it_is_are_told_apart_when_read_again(tmp_path: Path) -> None:
    specs = (FA, standard_error(FA), standard_deviation(FA))
    for spec in specs:
        write(tmp_path, parameter_map(spec))
    found = outputs.finished_maps(tmp_path, "sub-01", "tensor", [spec.name for spec in specs], "wls", KEY)
    assert [map.spec for map in outputs.read_maps(found).values()] == list(specs)


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, replace(parameter_map(STATUS), data=np.full(SHAPE, 3, np.float32)))
    assert nib.load(path).get_data_dtype() == np.uint8
    assert (outputs.read_map(path).data == 3).all()


def test_a_map_reads_back_as_it_was(tmp_path: Path) -> None:
    back, given = outputs.read_map(write(tmp_path)), parameter_map()
    assert back.spec == given.spec
    assert back.provenance == given.provenance
    np.testing.assert_array_equal(back.data, given.data)
    np.testing.assert_allclose(back.affine, given.affine, atol=1e-6)


def test_a_rerun_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name)
        outputs.write_dataset_description(tmp_path / name)
    first = contents(tmp_path / "a")
    assert len(first) == 3
    assert first == contents(tmp_path / "b")
    assert str(tmp_path).encode() not in b"".join(first.values())


def test_the_dataset_description_is_that_of_a_derivative(tmp_path: Path) -> None:
    values = json.loads(outputs.write_dataset_description(tmp_path).read_text())
    assert values["DatasetType"] == "derivative"
    assert values["GeneratedBy"][0]["Name"] == "DiffusionFM"


def test_another_programs_dataset_description_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "dataset_description.json"
    path.write_text('{"Name": "raw data"}')
    outputs.write_dataset_description(tmp_path)
    assert path.read_text() == '{"Name": "raw data"}'


@pytest.mark.parametrize("module", [compressed._gzip, gzip])
def test_compression_is_deterministic_and_whole(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_gzip", module)
    monkeypatch.setattr(compressed, "_LEVEL", 2)
    data = np.arange(10000).tobytes()
    assert gzip.decompress(compressed.compress(data)) == data
    # bytes 4 to 8 of a gzip stream are its time, the flags in byte 3 would announce a file name
    assert compressed.compress(data)[3:8] == bytes(5)


# --- resuming -----------------------------------------------------------------------------------------------------


def test_a_finished_map_is_known_by_its_key(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert outputs.finished_map(path, KEY)
    assert not outputs.finished_map(path, "1" * 64)
    found = outputs.finished_maps(tmp_path, "sub-01", "tensor", ["fa", "md"], "wls", KEY)
    assert found == {"fa": path}


@pytest.mark.parametrize("damage", ["no sidecar", "no map", "cut map", "cut sidecar", "other json"])
def test_a_damaged_map_is_not_finished(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    sidecar = tmp_path / path.name.replace(".nii.gz", ".json")
    match damage:
        case "no sidecar":
            sidecar.unlink()
        case "no map":
            path.unlink()
        case "cut map":
            path.write_bytes(path.read_bytes()[:-1])
        case "cut sidecar":
            sidecar.write_bytes(sidecar.read_bytes()[:-20])
        case "other json":
            sidecar.write_text("[1, 2]")
    assert not outputs.finished_map(path, KEY)
    if damage in ("no sidecar", "cut sidecar", "other json"):
        with pytest.raises(InputError, match="is missing or is not a sidecar"):
            outputs.read_map(path)


def test_a_new_map_never_stands_beside_an_old_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, parameter_map(key="1" * 64))
    assert list(contents(tmp_path)) == [path.name]


# --- whole or absent -------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def fill(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OutputError, match="param-fa.* could not be written .*No space left") as caught:
        write(tmp_path)
    assert caught.value.hint.startswith("Free some space")
    assert contents(tmp_path) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_that_is_full_is_named(tmp_path: Path) -> None:
    def write_to_device() -> None:
        with outputs.replacing(tmp_path / "map.nii") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"data")

    with pytest.raises(OutputError, match="No space left"):
        write_to_device()
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "out")
    assert caught.value.hint
    assert contents(tmp_path) == {"out": b"mine"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_an_output_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path)
    tmp_path.chmod(0o700)


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with outputs.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert contents(tmp_path) == {"file": b"old"}


def test_a_process_that_ends_at_once_can_discard_what_is_half_written(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from DiffusionFMLib.io import outputs\n"
        "with outputs.replacing(pathlib.Path(sys.argv[1]) / 'map') as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.environ['TMPDIR'] = os.environ['TEMP'] = sys.argv[1]\n"
        "    keeper = outputs.temporary_folder()\n"
        "    folder = keeper.__enter__()\n"
        "    (folder / 'converted.nii').write_bytes(b'patient')\n"
        "    assert folder.parent == pathlib.Path(sys.argv[1])\n"
        "    outputs.discard_temporaries()\n"
        "    os._exit(3)\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_child_process_ends_with_ours(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (tmp_path / "log.txt").open("w") as log, outputs.child_process(command, log) as process:
        assert process.poll() is None
        outputs.discard_temporaries()
        assert process.poll() is not None


def test_child_process_is_killed_when_its_block_fails(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    log = (tmp_path / "log.txt").open("w")
    with log, pytest.raises(KeyError), outputs.child_process(command, log) as process:
        raise KeyError
    assert process.poll() is not None

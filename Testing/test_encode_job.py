"""Job encode, from files to files, by the command line and by a resident worker that is asked about places."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from worker_client import WorkerClient, of_kind, write_small_scan

from DiffusionFMLib.cli import DONE, USER, main
from DiffusionFMLib.encoder.checkpoint import save_encoder
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.overlays.kinds import OVERLAYS

SHAPE = EncoderShape(
    24, 2, 2, 24, 1, 24, (4, 4, 4), directions="even", position_divisor=4.0, axes="scanner", brain_only=True
)
INSIDE = [12, 12, 6]
ALL = ["rollout", "pca", "surprise", "influence", "directions"]


def write_encoder(path, seed=0):
    torch.manual_seed(seed)
    save_encoder(path, DiffusionTransformer(SHAPE), {"steps": 0})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("weights") / "encoder.safetensors")


@pytest.fixture(scope="module")
def encoded(worker, scan, weights, tmp_path_factory):
    """Events and folders of one run for all overlays."""
    out, arrays = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("arrays")
    settings = {"dwi": scan, "encoder": weights, "overlays": "all", "device": "cpu"}
    return worker.run("encode", out=out, arrays=arrays, **settings), out, arrays


def ask(worker, **body):
    event = worker.until_end(worker.send("query", **body))[0]
    return event.data if event.kind == "result" else event


def test_files_are_named_by_what_they_are(encoded):
    events, out, _ = encoded
    assert events[-1].kind == "finished"
    (result,) = of_kind(events, "result")
    assert result.data["overlays"] == ALL
    assert result.data["blocks"] == result.data["heads"] == 2
    assert set(result.data["files"]) == {
        "scan_features_tokens.nii.gz", "scan_features_pca.nii.gz", "scan_attention_surprise.nii.gz",
        "scan_attention_influence.nii.gz", "scan_attention_directions.nii.gz", "scan_attention_rollout.nii.gz",
        "scan_features_summary.json",
    }  # fmt: skip
    assert {*(path.name for path in out.glob("*.nii.gz")), "scan_features_summary.json"} == set(result.data["files"])
    stages = list(dict.fromkeys(e.stage for e in of_kind(events, "progress")))
    # the readout is of a tensor fit
    assert stages[-6:] == ["Encoding", "Surprise", "Attention", "Influence", "Fitting", "Writing"]


def test_overlays_are_in_the_scans_grid_and_say_what_they_show(encoded, scan):
    events, out, _ = encoded
    affine = nibabel.load(scan).affine
    for event in of_kind(events, "artifact"):
        if event.role != "map":
            continue
        image = nibabel.load(event.path)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        assert image.shape[:3] == (24, 24, 12)
        np.testing.assert_array_equal(np.swapaxes(np.load(event.array), 0, 2), image.get_fdata(dtype=np.float32))
        sidecar = json.loads((out / event.path.split("/")[-1].replace(".nii.gz", ".json")).read_text())
        assert sidecar["Description"] == OVERLAYS[event.name].spec.description
        assert sidecar["Provenance"]["method"] == "encoder"
        assert ("unproven" in sidecar["Provenance"]) != OVERLAYS[event.name].standard


def test_tokens_lie_at_their_patches(encoded, scan):
    _, out, _ = encoded
    tokens = nibabel.load(out / "scan_features_tokens.nii.gz")
    assert tokens.shape == (6, 6, 3, 24)
    # the middle of the first patch's 4 x 4 x 4 voxels
    expected = nibabel.load(scan).affine @ [1.5, 1.5, 1.5, 1]
    np.testing.assert_allclose(tokens.affine @ [0, 0, 0, 1], expected, atol=1e-5)
    summary = json.loads((out / "scan_features_summary.json").read_text())
    assert len(summary["Summary"]) == 24


def test_a_resident_worker_answers_about_places(worker, encoded):
    assert ask(worker, what="encoding") == {
        "encoded": True, "blocks": 2, "heads": 2, "overlays": ["similarity", "directions", "raw"],
    }  # fmt: skip
    answer = ask(worker, what="overlay", overlay="similarity", ijk=INSIDE)
    assert answer["shape"] == [12, 12, 6]
    assert len(ask(worker, what="directions", ijk=INSIDE, block=1)["attention"]) == 12
    failed = ask(worker, what="overlay", overlay="similarity", ijk=[0, 0, 0])
    assert failed.kind == "failed"
    assert "outside the brain" in failed.message


def test_a_second_run_in_the_viewer_does_not_encode_again(worker, encoded, scan, weights):
    _, out, arrays = encoded
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    events = worker.run("encode", dwi=scan, encoder=weights, overlays="all", device="cpu", out=out, arrays=arrays)
    assert not {e.stage for e in of_kind(events, "progress")} & {"Encoding", "Surprise", "Attention", "Influence"}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_questions_before_a_scan_is_encoded_are_told(scan):
    with WorkerClient() as other:
        other.run("info", dwi=scan)
        assert ask(other, what="encoding")["encoded"] is False
        failed = ask(other, what="overlay", overlay="similarity", ijk=INSIDE)
        assert failed.kind == "failed"
        assert "not encoded yet" in failed.message


def test_a_finished_folder_is_kept_and_a_damaged_file_made_again(scan, weights, tmp_path, capsys):
    command = ["encode", str(scan), "--encoder", str(weights), "--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == DONE
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert main(command) == DONE
    assert "kept from an earlier run" in capsys.readouterr().out
    damaged = tmp_path / "scan_attention_rollout.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert main([*command, "--json"]) == DONE
    assert "reused" not in json.loads(capsys.readouterr().out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_all_overlays_are_enough_for_who_wants_the_standard_ones(scan, weights, tmp_path, capsys):
    command = ["encode", str(scan), "--encoder", str(weights), "--out", str(tmp_path), "--device", "cpu", "--json"]
    for choice, again in (("standard", False), ("all", False), ("standard", True), ("all", True)):
        capsys.readouterr()
        assert main([*command, "--overlays", choice]) == DONE
        assert ("reused" in json.loads(capsys.readouterr().out)) == again
    assert (tmp_path / "scan_attention_influence.nii.gz").is_file()


def test_other_weights_are_another_result(scan, weights, tmp_path, capsys):
    command = ["encode", str(scan), "--out", str(tmp_path), "--device", "cpu", "--json", "--encoder"]
    assert main([*command, str(weights)]) == DONE
    other = write_encoder(tmp_path / "other.safetensors", seed=1)
    capsys.readouterr()
    assert main([*command, str(other)]) == DONE
    assert "reused" not in json.loads(capsys.readouterr().out)


def test_more_memory_is_another_result(scan, weights, tmp_path, capsys):
    """With little, surprise and attention rest on fewer directions."""
    command = ["encode", str(scan), "--out", str(tmp_path), "--device", "cpu", "--json", "--encoder", str(weights)]
    for memory in ("512", "1024"):
        assert main([*command, "--memory-mib", memory]) == DONE
        assert "reused" not in json.loads(capsys.readouterr().out)
        sidecar = json.loads((tmp_path / "scan_attention_rollout.json").read_text())
        assert sidecar["Provenance"]["memory_mib"] == int(memory)


def test_few_directions_are_encoded_without_what_needs_more(weights, tmp_path, capsys):
    few = write_small_scan(tmp_path / "few", n_directions=3)
    arguments = ["--encoder", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu", "--overlays", "all"]
    assert main(["encode", str(few), *arguments]) == DONE
    captured = capsys.readouterr()
    assert "no map of surprise" in captured.err
    assert "no map of influence" in captured.err
    assert (tmp_path / "out" / "scan_features_pca.nii.gz").is_file()
    assert not list((tmp_path / "out").glob("*surprise*"))


def test_voxels_smaller_than_any_that_was_trained_on_are_told(weights, tmp_path, capsys):
    path = write_small_scan(tmp_path / "fine", n_directions=6)
    image = nibabel.load(path)
    fine = image.affine @ np.diag([0.3, 0.3, 1, 1])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), fine), path)
    assert main(["encode", str(path), "--encoder", str(weights), "--out", str(tmp_path / "out")]) == DONE
    assert "Voxels are 0.75 x 0.75 x 2.5 mm; what is learnt was trained for edges of 1 mm" in capsys.readouterr().err


def test_weights_that_are_not_there_are_told_before_anything_is_read(scan, tmp_path, capsys):
    assert main(["encode", str(scan), "--encoder", str(tmp_path / "no.safetensors"), "--out", str(tmp_path)]) == USER
    assert "There are no weights of an encoder at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

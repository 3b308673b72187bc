"""Commands on small scans, in this process: what people and scripts see."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from brain_scans import head
from worker_client import ENVIRONMENT, write_small_scan

from DiffusionFMLib.cli import DONE, USER, main
from DiffusionFMLib.console import EventSink
from DiffusionFMLib.events import Artifact, Cancelled
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import write_acquisition


@pytest.fixture
def copy(tmp_path):
    """A scan that a test may break; alone in its folder."""
    return write_small_scan(tmp_path / "scan")


def test_info_shows_the_protocol_and_what_can_be_fitted(scan, capsys):
    assert main(["info", str(scan)]) == DONE
    text = capsys.readouterr().out
    assert "b 0 1000: 1+12" in text
    assert "model dti" in text
    assert "supported" in text


def test_json_is_all_there_is_on_stdout(scan, capsys):
    assert main(["info", str(scan), "--json"]) == DONE
    result = json.loads(capsys.readouterr().out)
    assert result["name"] == "scan"
    assert result["models"]["adc"] is result["models"]["dti"] is None
    assert "two shells" in result["models"]["dki"]
    assert result["quality"]["light"] in ("green", "amber", "red")


def test_fit_writes_named_maps_and_says_where(scan, tmp_path, capsys):
    assert main(["fit", str(scan), "--model", "adc", "--method", "ols", "--out", str(tmp_path / "maps")]) == DONE
    captured = capsys.readouterr()
    assert str(tmp_path / "maps") in captured.out
    assert "Fitting" in captured.err
    assert (tmp_path / "maps" / "scan_model-adc_param-adc_desc-ols_dwimap.nii.gz").is_file()
    main(["fit", str(scan), "--model", "adc", "--method", "ols", "--out", str(tmp_path / "maps")])
    assert "kept from an earlier run: adc, s0, residual, status" in capsys.readouterr().out


def test_track_writes_streamlines_along_the_fibres(scan, tmp_path, capsys):
    out = tmp_path / "maps"
    command = ["track", str(scan), "--out", str(out), "--tract-format", "tck", "--max-count", "200", "--json"]
    assert main(command) == DONE
    result = json.loads(capsys.readouterr().out)
    assert result["tracts"] == ["scan_model-tensor_desc-deterministic_tractography.tck"]

    import nibabel

    tracts = nibabel.streamlines.load(out / result["tracts"][0]).streamlines
    assert len(tracts) == result["count"] > 20
    # fibres of the middle slab run left-right, those above and below it up-down
    middle = [t for t in tracts if np.abs(t[:, 2]).max() < 3]
    assert middle
    ends = np.array([np.abs(t[-1] - t[0]) / np.linalg.norm(t[-1] - t[0]) for t in middle])
    assert np.median(ends[:, 0]) > 0.9


def test_info_lists_what_was_normalised(copy, capsys):
    bvec = copy.with_name("scan.bvec")
    np.savetxt(bvec, np.loadtxt(bvec).T)
    assert main(["info", str(copy)]) == DONE
    assert "scan.bvec holds a row per volume" in capsys.readouterr().out


def test_t1w_is_read_and_said_to_be_unused(scan, tmp_path, capsys):
    import nibabel

    assert main(["info", str(scan), "--t1w", str(tmp_path / "none.nii")]) == USER
    assert "none.nii does not exist" in capsys.readouterr().err
    t1w = nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4))
    nibabel.save(t1w, tmp_path / "t1w.nii")
    assert main(["info", str(scan), "--t1w", str(tmp_path / "t1w.nii")]) == DONE
    assert "no model of this version uses" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["again.nii.gz", "again.nrrd"])
def test_convert_keeps_the_scan(scan, tmp_path, capsys, name):
    assert main(["convert", str(scan), "--out", str(tmp_path / name)]) == DONE
    capsys.readouterr()
    assert main(["info", str(tmp_path / name), "--json"]) == DONE
    again = json.loads(capsys.readouterr().out)
    assert main(["info", str(scan), "--json"]) == DONE
    assert {**again["quality"], "name": "scan"} == json.loads(capsys.readouterr().out)["quality"]


def test_convert_does_not_write_over_the_scan(copy, tmp_path, capsys):
    before = copy.read_bytes()
    assert main(["convert", str(copy), "--out", str(tmp_path / "scan" / ".." / "scan" / copy.name)]) == USER
    assert "written over" in capsys.readouterr().err
    assert copy.read_bytes() == before


@pytest.mark.parametrize("named", [True, False])
def test_convert_does_not_write_over_the_scans_gradients(copy, tmp_path, capsys, named):
    folder = copy.parent
    flags = []
    out = folder / "scan.nii"
    if named:
        flags = ["--bval", str(folder / "scan.bval"), "--bvec", str(folder / "other.bvec")]
        (folder / "scan.bvec").rename(folder / "other.bvec")
        out = folder / "other.nii.gz"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["convert", str(copy), *flags, "--out", str(out)]) == USER
    assert "written over" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["again.nii.gz", "again.nrrd", "again.nhdr"])
def test_convert_does_not_write_over_another_scan(scan, tmp_path, capsys, name):
    command = ["convert", str(scan), "--out", str(tmp_path / name)]
    assert main(command) == DONE
    (tmp_path / name).write_bytes(b"another scan")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(command) == USER
    assert f"{name} is there already" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write to")
def test_an_output_folder_that_cannot_be_written_to_is_told_before_any_work(scan, capsys):
    assert main(["fit", str(scan), "--out", "/proc/maps"]) == USER
    errors = capsys.readouterr().err
    assert "/proc cannot be written to" in errors
    assert "%" not in errors


def test_each_format_of_streamlines_is_kept_beside_the_others(scan, tmp_path, capsys):
    command = ["track", str(scan), "--out", str(tmp_path), "--max-count", "50", "--json"]
    kept = {}
    for tract_format in ("trx", "tck", "trk", "trx", "tck", "trk"):
        assert main([*command, "--tract-format", tract_format]) == DONE
        result = json.loads(capsys.readouterr().out)
        assert ("tracts" in result["reused"]) == (tract_format in kept)
        kept.setdefault(tract_format, result["count"])
    assert len(set(kept.values())) == 1


def _break(path, how):
    bval, bvec = (path.with_name(f"scan.{end}") for end in ("bval", "bvec"))
    match how:
        case "no scan":
            path.unlink()
        case "no bval":
            bval.unlink()
        case "a direction too few":
            np.savetxt(bvec, np.loadtxt(bvec)[:, 1:])
        case "words in bval":
            bval.write_text("0 one thousand")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-5000])
        case "no image":
            path.write_bytes(b"this is no image" * 1000)
        case "no b0":
            np.savetxt(bval, np.full((1, 13), 1000), fmt="%d")
            np.savetxt(bvec, np.tile([[1.0], [0], [0]], 13))


@pytest.mark.parametrize(
    "how", ["no scan", "no bval", "a direction too few", "words in bval", "truncated", "no image", "no b0"]
)
def test_a_broken_scan_ends_with_what_to_do_and_nothing_written(copy, tmp_path, capsys, how):
    _break(copy, how)
    before = sorted(tmp_path.rglob("*"))
    assert main(["fit", str(copy), "--out", str(tmp_path / "maps"), "--json"]) == USER
    captured = capsys.readouterr()
    assert captured.out == ""
    message, hint = captured.err.strip().splitlines()[-2:]
    assert message.startswith("error: ")
    assert "scan" in message
    assert hint.startswith("  ")
    assert len(hint) > 10
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--out", ""], "output folder"),
        (["--out", "maps", "--mask", "absent.nii.gz"], "absent.nii.gz"),
        (["--out", "maps", "--bval", "absent.bval"], "absent.bval"),
        (["--out", "maps", "--bvec", "absent.bvec"], "absent.bvec"),
        (["--out", "scan/scan.nii.gz"], "scan.nii.gz"),
    ],
)
def test_a_wrong_path_is_named(copy, tmp_path, capsys, monkeypatch, flags, word):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["fit", "scan/scan.nii.gz", *flags]) == USER
    assert word in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_too_few_directions_for_the_model_names_both_counts(tmp_path, capsys):
    few = write_small_scan(tmp_path, n_directions=5)
    assert main(["fit", str(few), "--out", str(tmp_path / "maps")]) == USER
    errors = capsys.readouterr().err
    assert "5" in errors
    assert "6" in errors
    assert not (tmp_path / "maps").exists()


def test_the_module_runs_as_a_program(scan):
    command = [sys.executable, "-m", "DiffusionFMLib", "info", str(scan), "--json"]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True)
    assert json.loads(done.stdout)["name"] == "scan"


def test_a_message_may_hold_what_looks_like_markup(tmp_path, capsys):
    assert main(["info", str(tmp_path / "[red]scan[/red].nii.gz")]) == USER
    assert "[red]scan[/red].nii.gz" in capsys.readouterr().err


def test_demo_draws_what_it_made(tmp_path, capsys):
    from matplotlib.image import imread

    scan = write_small_scan(tmp_path / "scan")
    assert main(["demo", "--dwi", str(scan), "--out", str(tmp_path / "demo"), "--device", "cpu"]) == DONE
    assert str(tmp_path / "demo") in capsys.readouterr().out
    picture = imread(tmp_path / "demo" / "figure.png")[..., :3]
    assert picture.shape == (900, 1500, 3)
    # all fifteen views show something
    tiles = picture[30:].reshape(3, 290, 5, 300, 3).max(axis=(1, 3, 4))
    assert (tiles > 0.5).all()


def test_a_simulated_scan_can_be_fitted(tmp_path, capsys):
    """And a scan of other shells in the same folder leaves none of its truth there."""
    for name in ("mk_desc-truth_dwimap.nii.gz", "mk_desc-truth_dwimap.json"):
        (tmp_path / f"simulated_dwi_model-dki_param-{name}").touch()
    simulate = ["simulate", "--out", str(tmp_path), "--voxel-size", "5", "--shells", "1000:12", "--json"]
    assert main(simulate) == DONE
    result = json.loads(capsys.readouterr().out)
    assert set(result["files"]) == {path.name for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert not list(tmp_path.glob("*_model-dki_*"))
    assert main(["info", result["dwi"], "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["quality"]["shells"][1]["volumes"] == 12


def test_quality_findings_are_warnings_of_a_fit_and_stand_in_the_sidecars(tmp_path, capsys):
    few = write_small_scan(tmp_path / "scan", n_directions=8)
    assert main(["fit", str(few), "--out", str(tmp_path / "maps")]) == DONE
    assert "only 8 gradient directions" in " ".join(capsys.readouterr().err.split())
    sidecar = json.loads((tmp_path / "maps" / "scan_model-tensor_param-fa_desc-wls_dwimap.json").read_text())
    assert any("only 8 gradient directions" in finding for finding in sidecar["Provenance"]["quality_findings"])


def test_wrong_gradients_are_told_once_by_info_and_by_every_fit(tmp_path, capsys):
    phantom, _ = head()
    flipped = replace(phantom, gtab=GradientTable(phantom.gtab.bvals, phantom.gtab.bvecs * [-1, 1, 1]))
    path = write_acquisition(flipped, tmp_path / "flipped.nii.gz")[0]
    words = "sign of the image's x axis (left-right) flipped"
    assert main(["info", str(path)]) == DONE
    assert " ".join(capsys.readouterr().out.split()).count(words) == 1
    assert main(["fit", str(path), "--out", str(tmp_path / "maps")]) == DONE
    assert " ".join(capsys.readouterr().err.split()).count(words) == 1
    sidecar = (tmp_path / "maps" / "flipped_model-tensor_param-colorfa_desc-wls_dwimap.json").read_text()
    assert words in sidecar


def test_seed_label_without_a_seed_mask_is_refused(scan, tmp_path, capsys):
    assert main(["track", str(scan), "--out", str(tmp_path / "maps"), "--seed-label", "2"]) == USER
    assert "no seed mask" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_streamlines_of_a_region_have_a_name_of_their_own(scan, tmp_path, capsys):
    import nibabel

    image = nibabel.load(scan)
    labels = np.zeros(image.shape[:3], np.uint8)
    labels[6:18, 6:18, 3:9] = 2
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), tmp_path / "motor.nii.gz")
    command = ["track", str(scan), "--out", str(tmp_path / "maps"), "--max-count", "50", "--json"]
    assert main([*command, "--seed-mask", str(tmp_path / "motor.nii.gz"), "--seed-label", "2"]) == DONE
    result = json.loads(capsys.readouterr().out)
    assert result["tracts"] == ["scan_model-tensor_seed-motor2_desc-deterministic_tractography.trx"]


def test_b_values_a_thousand_times_too_large_are_named(copy, capsys):
    bval = copy.parent / "scan.bval"
    bval.write_text(" ".join(f"{1000 * float(b):g}" for b in bval.read_text().split()))
    assert main(["info", str(copy)]) == USER
    assert "1000 times too large" in capsys.readouterr().err


def test_a_cancelled_job_says_whether_something_was_written(capsys):
    sink = EventSink()
    sink(Cancelled("1"))
    assert "nothing was written" in capsys.readouterr().err
    sink(Artifact("1", "fa.nii.gz", "map", "fa"))
    sink(Cancelled("1"))
    assert "what was finished is kept" in capsys.readouterr().err


def test_shells_above_max_bval_are_left_out_and_the_tensor_warns_of_them(tmp_path, capsys):
    simulate = [
        "simulate",
        "--out",
        str(tmp_path / "scan"),
        "--voxel-size",
        "5",
        "--shells",
        "1000:12,2500:12",
        "--json",
    ]
    assert main(simulate) == DONE
    dwi = json.loads(capsys.readouterr().out)["dwi"]

    def fit(folder: str, *flags: str) -> tuple[dict, str]:
        assert main(["fit", dwi, "--out", str(tmp_path / folder), *flags]) == DONE
        warned = " ".join(capsys.readouterr().err.split())
        (sidecar,) = (tmp_path / folder).glob("*_param-fa_desc-wls_dwimap.json")
        return json.loads(sidecar.read_text())["Provenance"], warned

    of_all, warned = fit("all")
    assert "does not describe the signal at b = 2500" in warned
    assert [shell["bval"] for shell in of_all["shells"]] == [1000, 2500]
    of_low, warned = fit("low", "--max-bval", "1500")
    assert "does not describe" not in warned
    assert [shell["bval"] for shell in of_low["shells"]] == [1000]
    assert any("12 volume(s) above b = 1500 s/mm2 were left out" in note for note in of_low["notes"])
    assert main(["fit", dwi, "--out", str(tmp_path / "none"), "--max-bval", "500"]) == USER
    failure = " ".join(capsys.readouterr().err.split())
    assert "no diffusion weighting. 24 volume(s) above b = 500 s/mm2 were left out." in failure
    assert "Raise max b-value" in failure
    assert main(["fit", dwi, "--model", "adc", "--out", str(tmp_path / "adc")]) == DONE
    assert "The ADC does not describe the signal at b = 2500" in " ".join(capsys.readouterr().err.split())


def test_maps_of_other_settings_in_the_folder_are_told(scan, tmp_path, capsys):
    assert main(["fit", str(scan), "--out", str(tmp_path), "--standard-errors"]) == DONE
    assert main(["fit", str(scan), "--out", str(tmp_path), "--method", "ols"]) == DONE
    assert "other settings" not in capsys.readouterr().err
    assert main(["fit", str(scan), "--out", str(tmp_path), "--reweightings", "3"]) == DONE
    told = " ".join(capsys.readouterr().err.split())
    assert "5 map(s) of other settings, such as scan_model-tensor_param-ad_desc-wlsse_dwimap" in told


def test_standard_errors_after_denoising_are_doubted(scan, tmp_path, capsys):
    fit = ["fit", str(scan), "--out", str(tmp_path), "--standard-errors"]
    assert main(fit) == DONE
    assert "too small" not in capsys.readouterr().err
    assert main([*fit, "--denoise", "mppca"]) == DONE
    assert "too small" in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing(scan, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "image")

    monkeypatch.setattr("DiffusionFMLib.io.writing._write_volumes", full)
    assert main(["convert", str(scan), "--out", str(tmp_path / "again.nii.gz")]) == USER
    assert "Free some space" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_standard_errors_are_written_beside_the_maps(scan, tmp_path, capsys):
    assert main(["fit", str(scan), "--out", str(tmp_path), "--standard-errors", "--json"]) == DONE
    assert {"fa_se", "md_se", "s0_se"} <= set(json.loads(capsys.readouterr().out)["maps"])
    path = tmp_path / "scan_model-tensor_param-fa_desc-wlsse_dwimap.nii.gz"
    assert 0 < np.median(nibabel.load(path).get_fdata()[6:10, 6:10, 3]) < 0.2
    # found again, and not taken for what they are not
    assert main(["fit", str(scan), "--out", str(tmp_path), "--standard-errors", "--json"]) == DONE
    assert "fa_se" in json.loads(capsys.readouterr().out)["reused"]

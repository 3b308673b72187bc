"""The prior by the command: its files, what it uses again, what it tells, and what follows it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from worker_client import write_small_scan

from DiffusionFMLib.cli import USER, main
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.jobs import run
from DiffusionFMLib.maps import with_prior_maps
from DiffusionFMLib.physics import DTI, METHODS, MODELS
from DiffusionFMLib.prior.weights import load_weights, save_weights, weights_file
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import FitSettings, ScanSettings

MODEL = MODELS["dti"]
SPECS = with_prior_maps(DTI.map_specs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small scan, and the folder of its results by the prior."""
    scan, out = write_small_scan(tmp_path_factory.mktemp("scan")), tmp_path_factory.mktemp("out")
    assert main(["fit", str(scan), "--method", "prior", "--adaptation", "none", "--out", str(out)]) == 0
    return scan, out


def entity(name: str, method: str) -> str:
    name, _, part = name.partition("_")
    return f"scan_model-tensor_param-{name}_desc-{method}{part}_dwimap"


def test_files_are_those_declared_with_the_conventional_fit_beside(folder):
    written = {path.name for path in folder[1].glob("*dwimap.*")}
    stems = {entity(spec.name, "prior") for spec in SPECS} | {
        entity(spec.name, "wls") for spec in METHODS["wls"].map_specs(MODEL, False)
    }
    assert written == {f"{stem}{suffix}" for stem in stems for suffix in (".json", ".nii.gz")}
    for spec in SPECS:
        sidecar = json.loads((folder[1] / f"{entity(spec.name, 'prior')}.json").read_text())
        assert (sidecar["Title"], sidecar["Colors"]) == (spec.title, spec.colors)
        # that of S0 is the scan's
        assert sidecar.get("Window", [0, 0]) == list(spec.window)
        assert ("Window" in sidecar) == (spec.window[1] > spec.window[0])
        provenance = sidecar["Provenance"]
        assert provenance["method"] == "prior"
        assert provenance["conventional_fit"] == "wls"
        assert [len(used["sha256"]) for used in provenance["weights"]] == [64]
        assert provenance["noise"]["sigma"] > 0


def test_a_second_run_keeps_everything_and_a_conventional_one_its_part(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder[1].glob("*dwimap.nii.gz")}
    for method in ("prior", "wls"):
        assert (
            main(["fit", str(folder[0]), "--method", method, "--adaptation", "none", "--out", str(folder[1]), "--json"])
            == 0
        )
        result = json.loads(capsys.readouterr().out)
        assert result["reused"] == result["maps"]
    assert {path: path.stat().st_mtime_ns for path in folder[1].glob("*dwimap.nii.gz")} == before


def test_other_weights_make_other_maps(folder, tmp_path, capsys):
    trained = load_weights(weights_file("", MODEL))
    with torch.no_grad():
        trained.network.linear.bias += 0.05
    save_weights(tmp_path / "own.safetensors", trained.network, trained.model, {})
    arguments = [
        "fit",
        str(folder[0]),
        "--method",
        "prior",
        "--adaptation",
        "none",
        "--weights",
        str(tmp_path / "own.safetensors"),
    ]
    before = nib.load(folder[1] / f"{entity('md', 'prior')}.nii.gz").get_fdata()
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["reused"] == []
    # in the answer for scripts, too
    assert any("own.safetensors were not calibrated" in warning for warning in result["warnings"])
    after = nib.load(out / f"{entity('md', 'prior')}.nii.gz").get_fdata()
    assert np.abs(after - before).max() > 1e-6


def test_what_is_sampled_is_a_file_of_its_own_where_there_is_one(tmp_path):
    own = tmp_path / "own.safetensors"
    own.touch()
    assert weights_file("", MODEL, sampling=True).name == "sampler-dti-small.safetensors"
    assert weights_file("", MODELS["noddi"], sampling=True) == weights_file("", MODELS["dki"])
    assert weights_file(str(own), MODEL, sampling=True) == own


def test_weights_that_are_not_used_are_told(folder, tmp_path, capsys):
    assert main(["fit", str(folder[0]), "--weights", "own.safetensors", "--out", str(tmp_path)]) == 0
    assert "Weights are the prior's, and were not used" in capsys.readouterr().err


def test_weights_that_cannot_be_used_are_told_before_anything_is_fitted(folder, tmp_path, capsys):
    broken, other = tmp_path / "broken.safetensors", weights_file("", MODELS["dki"])
    broken.write_text("no weights")
    damaged, trained = tmp_path / "damaged.safetensors", load_weights(weights_file("", MODEL))
    trained.calibrations["dti"].centre[0] = torch.nan
    save_weights(damaged, trained.network, trained.model, {}, trained.calibrations)
    for path, told in ((broken, "cannot be read"), (damaged, "are damaged"), (other, "was trained for")):
        out = tmp_path / path.stem
        assert main(["fit", str(folder[0]), "--method", "prior", "--weights", str(path), "--out", str(out)]) == USER
        assert told in " ".join(capsys.readouterr().err.split())
        assert not list(tmp_path.glob("**/*dwimap*"))


def test_the_conventional_maps_are_listed_too(folder, capsys):
    assert main(["fit", str(folder[0]), "--method", "prior", "--adaptation", "none", "--out", str(folder[1])]) == 0
    assert "and beside them, by wls: fa, md," in " ".join(capsys.readouterr().out.split())


def test_few_directions_are_for_the_prior_alone(tmp_path, capsys):
    scan = write_small_scan(tmp_path / "scan", n_directions=5)
    assert main(["fit", str(scan), "--out", str(tmp_path / "wls")]) == USER
    assert "Choose the method prior." in capsys.readouterr().err
    out = tmp_path / "prior"
    command = ["fit", str(scan), "--method", "prior", "--adaptation", "none", "--out", str(out)]
    assert main([*command, "--standard-errors"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "There is no conventional fit beside the prior's maps: " in told
    assert "5; a tensor needs 6" in told
    assert "Standard errors and reweightings were its" in told
    assert len(list(out.glob("*_desc-prior*.nii.gz"))) == len(SPECS)
    assert not list(out.glob("*_desc-wls*"))


def test_a_scan_is_not_denoised_before_the_prior_weighs_its_noise(folder, tmp_path, capsys):
    command = ["fit", str(folder[0]), "--method", "prior", "--adaptation", "none", "--out", str(tmp_path)]
    assert main([*command, "--denoise", "mppca"]) == USER
    assert "Leave denoising out" in capsys.readouterr().err
    assert not list(tmp_path.glob("*dwimap*"))
    assert main([*command, "--gibbs"]) == 0
    assert "Removing Gibbs ringing evens out some of the noise" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("directions", "errors"), [(7, False), (12, True)])
def test_standard_errors_of_the_fit_beside_need_volumes(directions, errors, tmp_path, capsys):
    """Of which the prior needs fewer: its maps are made all the same."""
    scan, out = write_small_scan(tmp_path / "scan", n_directions=directions), tmp_path / "out"
    command = ["fit", str(scan), "--method", "prior", "--adaptation", "none", "--standard-errors", "--out", str(out)]
    assert main(command) == 0
    assert ("has no standard errors: they need 3 volumes" in " ".join(capsys.readouterr().err.split())) != errors
    assert len(list(out.glob("*_desc-prior_*.nii.gz"))) > 5
    assert bool(list(out.glob("*_desc-wlsse_*"))) == errors


def test_tracts_follow_the_priors_directions(folder, tmp_path, capsys):
    arguments = [str(folder[0]), "--method", "prior", "--adaptation", "none", "--min-length", "5", "--json"]
    assert main(["track", *arguments, "--out", str(folder[1])]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] > 0
    assert set(result["reused"]) == {spec.name for spec in SPECS}
    assert main(["track", *arguments, "--out", str(folder[1])]) == 0
    assert "tracts" in json.loads(capsys.readouterr().out)["reused"]


def test_a_voxels_curve_is_the_priors(folder):
    session = Session()
    report = JobReport("id", lambda event: None, threading.Event())
    settings = FitSettings(dwi=str(folder[0]), method="prior", adaptation="none", out=str(folder[1]))
    run("fit", settings, report, session)
    acquisition = session.read(ScanSettings(dwi=str(folder[0])), SilentReport())
    answer = session.query({"what": "voxel", "ijk": [12, 12, 6]})
    measured = acquisition.signal[12, 12, 6]
    error = np.sqrt(np.mean((np.array(answer["fitted"]) - measured) ** 2)) / answer["maps"]["s0"]
    assert error == pytest.approx(answer["maps"]["residual"], rel=1e-3)
    assert set(answer["maps"]) == {spec.name for spec in SPECS}

"""Warnings of a fit belong to its result: whoever gets it again gets them again, but for those of the machine."""

from __future__ import annotations

import json

from worker_client import write_small_scan

from DiffusionFMLib import fit_job
from DiffusionFMLib.cli import main


def test_what_a_result_was_warned_of_it_is_warned_of_again(tmp_path, capsys):
    scan = write_small_scan(tmp_path / "scan", n_directions=6)
    command = ["fit", str(scan), "--method", "prior", "--adaptation", "none", "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 0
        told = capsys.readouterr()
        assert "standard deviations and disagreement are rough" in " ".join(told.err.split())
    assert "kept from an earlier run" in told.out
    sidecar = json.loads(next((tmp_path / "out").glob("*param-fa_desc-prior_*.json")).read_text())
    assert "noise" in [code for code, _ in sidecar["Provenance"]["warnings"]]


def test_what_only_this_machine_met_is_not_told_again(tmp_path, capsys, monkeypatch):
    def fitting(method):
        fit = real(method)

        def told(scan, model, settings, report):
            report.warning("gpu-memory", "This GPU was full.")
            report.warning("noise", "This scan is noisy.")
            return fit(scan, model, settings, report)

        return told

    real = fit_job._fitting
    monkeypatch.setattr(fit_job, "_fitting", fitting)
    scan = write_small_scan(tmp_path / "scan", n_directions=6)
    command = ["fit", str(scan), "--out", str(tmp_path / "out")]
    for full in (True, False):
        assert main(command) == 0
        told = capsys.readouterr().err
        assert "This scan is noisy." in told
        assert ("This GPU was full." in told) == full

"""The picture of a training run's log: what it holds, and what it does not touch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from DiffusionFMLib.training.plot import PLOT, figure_of, plot_log, read_log

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]


def write_log(path: Path, count: int = 60) -> list[dict]:
    """A log as training writes it: falling losses, and errors by noise and tissue, some of them missing at first."""
    rng = np.random.default_rng(0)
    lines = []
    for n in range(count):
        fall = float(np.exp(-n / 15))
        ratios = {"snr5_wm": 0.4 + 0.4 * fall, "snr25_wm": 0.7 + 0.3 * fall, "snr5_fluid": 0.3 + 0.2 * fall}
        if n > 3:
            ratios["few_fluid"] = 0.5 + fall
        line = {
            "step": 50 * (n + 1), "learning_rate": 1e-3, "seconds_per_step": 0.7, "parameters": 0.3 + fall,
            "likelihood": -0.5 + fall, "loss": 0.2 + fall + float(rng.normal(0, 0.05)), "gradient": float("nan"),
            "to_ridge": ratios,
        }  # fmt: skip
        lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_every_number_and_tissue_has_a_panel(tmp_path: Path) -> None:
    lines = write_log(tmp_path / "log.jsonl")
    figure = figure_of(read_log(tmp_path / "log.jsonl"))
    shown = {ax.get_title(): ax for ax in figure.axes if ax.axison}
    numbers = ["loss", "learning_rate", "seconds_per_step", "parameters", "likelihood", "gradient"]
    assert list(shown) == [*numbers, "error / ridge's, fluid", "error / ridge's, wm"]
    steps, values = shown["loss"].lines[0].get_data()
    np.testing.assert_array_equal(steps, [line["step"] for line in lines])
    np.testing.assert_array_equal(values, [line["loss"] for line in lines])
    white = shown["error / ridge's, wm"]
    assert [text.get_text() for text in white.get_legend().get_texts()] == ["snr25", "snr5"]
    few = next(line for line in shown["error / ridge's, fluid"].lines if line.get_label() == "few")
    assert np.isfinite(few.get_ydata()[10:]).all()


def test_bold_lines_are_running_means_that_follow_the_log_to_its_ends(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl")
    lines = [{**line, "loss": 3.0 + 2 * place} for place, line in enumerate(read_log(tmp_path / "log.jsonl"))]
    loss = next(ax for ax in figure_of(lines).axes if ax.get_title() == "loss")
    _, smooth = loss.lines[1].get_data()
    # seven lines wide: a straight line stays one, and at its ends is the mean of what is there
    values = [line["loss"] for line in lines]
    np.testing.assert_allclose(smooth[3:-3], values[3:-3])
    np.testing.assert_allclose(smooth[[0, 1, -1]], [np.mean(values[:4]), np.mean(values[:5]), np.mean(values[-4:])])


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    write_log(tmp_path / "log.jsonl")
    plot_log(tmp_path / "log.jsonl", tmp_path / PLOT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", PLOT]
    picture = imread(tmp_path / PLOT)[..., :3]
    assert picture.shape == (480, 1280, 3)
    # curves are the only colours; all of the eight panels but that of NaN have some
    colourful = (np.ptp(picture, axis=2) > 0.3).reshape(2, 240, 4, 320).sum(axis=(1, 3))
    assert ((colourful > 100).ravel() == [True, True, True, True, True, False, True, True]).all()


def test_what_an_interruption_leaves_in_the_log_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = write_log(log, 4)
    with log.open("a") as file:
        # taken up again from a checkpoint before the last line; then half a line
        file.write(json.dumps({**lines[3], "loss": 9.0}) + "\n")
        file.write('{"step": 250, "lo')
    found = read_log(log)
    assert [line["step"] for line in found] == [50, 100, 150, 200]
    assert found[3]["loss"] == 9.0


def test_nothing_is_drawn_of_nothing_or_without_matplotlib(tmp_path: Path, monkeypatch) -> None:
    plot_log(tmp_path / "log.jsonl", tmp_path / PLOT)
    (tmp_path / "log.jsonl").write_text("")
    plot_log(tmp_path / "log.jsonl", tmp_path / PLOT)
    write_log(tmp_path / "log.jsonl", 1)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    plot_log(tmp_path / "log.jsonl", tmp_path / PLOT)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    monkeypatch.undo()
    plot_log(tmp_path / "log.jsonl", tmp_path / PLOT)
    assert (tmp_path / PLOT).is_file()


def test_the_process_keeps_no_state_of_it(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", 5)
    code = (
        "import sys; from pathlib import Path; from DiffusionFMLib.training.plot import plot_log; "
        f"folder = Path({str(tmp_path)!r}); assert 'matplotlib' not in sys.modules; "
        "plot_log(folder / 'log.jsonl', folder / 'log.png'); print('matplotlib.pyplot' in sys.modules)"
    )
    # a backend that is not there would stop pyplot
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "TkAgg"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert (tmp_path / PLOT).is_file()

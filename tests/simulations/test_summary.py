from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from simulations.errors import SimulationError
from simulations.figures import running_mean
from simulations.report import write_report
from simulations.results import RunFolder
from simulations.summary import NUM_LAST, read_summaries


def _write_run(
    folder: Path, accuracies: list[float | None], bytes_up: int = 100
) -> None:
    results = RunFolder.named(str(folder))
    for number, accuracy in enumerate(accuracies):
        sent = bytes_up if number else 0
        results.append_round(
            {
                "round": number,
                **({} if accuracy is None else {"accuracy": accuracy, "loss": 1.0}),
                "bytes_up": sent,
                "bytes_up_dense": 4000 if number else 0,
                "bytes_down": 10 * sent,
                "bytes_down_dense": 120 * sent,
                "bytes_down_evaluate": 2 * sent,
                "bytes_up_evaluate": 1,
                "encode_seconds": 0.25,
                "decode_seconds": 0.5,
            }
        )


def test_two_settings_with_two_seeds(tmp_path: Path) -> None:
    _write_run(tmp_path / "a" / "seed-0", [0.1, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])
    _write_run(tmp_path / "a" / "seed-1", [0.1, 0.4, 0.8, 0.9, 0.9, 0.9, 0.9])
    _write_run(tmp_path / "b" / "seed-0", [0.2] * 7, bytes_up=400)
    a, b = read_summaries(tmp_path)
    assert (a.name, b.name) == ("a", "b")
    assert a.last_accuracy == pytest.approx((0.76 + 0.88) / 2)
    assert a.last_accuracy_deviation == pytest.approx(0.12 / 2**0.5)
    assert b.last_accuracy_deviation is None
    assert a.first_round_reaching(0.7) == 2
    assert b.first_round_reaching(0.7) is None
    assert (a.bytes_up, a.bytes_down, a.bytes_evaluate) == (600, 6000, 1207)
    assert (a.uplink_ratio, b.uplink_ratio) == (40, 10)
    assert (a.downlink_ratio, b.downlink_ratio) == (10, 10)
    assert a.codec_seconds == pytest.approx(7 * 0.75)
    assert np.allclose(b.megabytes_sent_up, np.arange(7) * 4e-4)


def test_a_short_run_shortens_its_setting(tmp_path: Path) -> None:
    _write_run(tmp_path / "a" / "seed-0", [0.1, 0.2, 0.3])
    _write_run(tmp_path / "a" / "seed-1", [0.1, 0.4])
    (summary,) = read_summaries(tmp_path)
    assert summary.accuracy == pytest.approx([0.1, 0.3])


def test_rounds_without_evaluation(tmp_path: Path) -> None:
    _write_run(tmp_path / "a" / "seed-0", [0.1, None, 0.3, None, 0.5])
    _write_run(tmp_path / "a" / "seed-1", [0.1, None, 0.5, 0.9, 0.7])
    (summary,) = read_summaries(tmp_path)
    assert summary.evaluated_rounds.tolist() == [0, 2, 4]
    assert summary.accuracy == pytest.approx([0.1, 0.4, 0.6])
    assert summary.last_accuracy == pytest.approx(0.5)
    assert summary.first_round_reaching(0.6) == 4
    assert summary.megabytes_sent_up == pytest.approx([0, 2e-4, 4e-4])
    assert summary.bytes_up == 400


def test_a_smoothed_curve_ends_at_the_accuracy_of_the_table(tmp_path: Path) -> None:
    _write_run(tmp_path / "long" / "seed-0", [0.1 + 0.8 * (i % 3) for i in range(40)])
    _write_run(tmp_path / "short" / "seed-0", [0.1, 0.4, 0.6])
    long, _ = read_summaries(tmp_path)
    smooth = running_mean(long.accuracy, NUM_LAST)
    assert smooth[-1] == pytest.approx(long.last_accuracy)
    assert smooth[:3] == pytest.approx([0.1, 0.5, 0.9])
    assert running_mean(long.accuracy, 1) == pytest.approx(long.accuracy)
    write_report(tmp_path, Console(file=io.StringIO()))
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_line_being_written_is_not_read(tmp_path: Path) -> None:
    _write_run(tmp_path, [0.1, 0.2])
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 2, "accu')
    assert [entry["round"] for entry in RunFolder(tmp_path).read_rounds()] == [0, 1]


def test_files_from_before_the_downlink_was_counted(tmp_path: Path) -> None:
    _write_run(tmp_path, [0.1, 0.2])
    path = tmp_path / "rounds.jsonl"
    path.write_text(path.read_text().replace("bytes_down_dense", "unknown"))
    (summary,) = read_summaries(tmp_path)
    assert summary.downlink_ratio == 0


def test_report_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="holds no run"):
        write_report(tmp_path, Console(file=io.StringIO()))


def test_report_prints_a_table_and_draws(tmp_path: Path) -> None:
    _write_run(tmp_path / "a" / "seed-0", [0.1, 0.5, 0.95])
    text = io.StringIO()
    write_report(tmp_path, Console(file=text, width=100))
    row = next(line for line in text.getvalue().splitlines() if "│a " in line)
    assert row.replace("│", " ").split()[:6] == [
        "a",
        "0.7250",
        "2",
        "r",
        "0.00",
        "0.00",
    ]
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"

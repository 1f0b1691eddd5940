"""``python -m simulations`` through ``flwr run`` and Ray, and plain ``flwr run``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simulations.data.dataset import DATA_VARIABLE
from simulations.results import RunFolder
from simulations.runner.superlink import CONNECTION, LocalSuperLink
from tests.simulations.runs import REPOSITORY, Started, run

pytestmark = pytest.mark.timeout(600)

SMALL = ("--num-clients", "3", "--set", "train-samples=100", "--name", "run")


def test_flower_and_loopback_agree_to_the_last_bit(tmp_path: Path) -> None:
    # A folder of the user's that would hide the app's own, if it were found.
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "__init__.py").write_text("raise RuntimeError('wrong')")
    through_flower = run(tmp_path, *SMALL, "--num-rounds", "2")
    assert through_flower.exit_code == 0, through_flower
    assert not through_flower.processes_left()
    (tmp_path / "other").mkdir()
    in_process = run(
        tmp_path / "other", *SMALL, "--num-rounds", "2", "--engine", "loopback"
    )
    assert in_process.exit_code == 0, in_process
    found, expected = (
        RunFolder(folder / "runs" / "run").read_rounds()
        for folder in (tmp_path, tmp_path / "other")
    )
    assert len(found) == 3
    for mine, other in zip(found, expected, strict=True):
        # Times differ, and node ids, by which evaluating nodes may be sampled.
        for key in ("round", "accuracy", "loss", "bytes_up", "num_replies", "dropped"):
            assert mine[key] == other[key]


def test_a_killed_server_app(tmp_path: Path) -> None:
    started = Started(tmp_path, *SMALL, "--num-rounds", "500", environment=None)
    started.wait_for(tmp_path / "runs" / "run" / "rounds.jsonl")
    started.find("flwr-simulation").kill()
    ended = started.wait()
    assert ended.exit_code == 1
    assert "of 500 rounds without giving a reason" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not ended.processes_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ("--dataset", "fashion-mnist", "--model", "cnn"),
            {DATA_VARIABLE: "nowhere"},
            "Fashion-MNIST not found",
        ),
        (("--dataset", "digits", "--num-clients", "60"), {}, "fewer clients"),
        (("--set", "lr=1e9"), {}, "lower the learning rate"),
    ],
)
def test_failures_inside_the_run(
    tmp_path: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    message: str,
) -> None:
    ended = run(tmp_path, *SMALL, *arguments, environment=environment)
    assert ended.exit_code == 1
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not ended.processes_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signals_stop_everything(tmp_path: Path, number: int, code: int) -> None:
    started = Started(tmp_path, *SMALL, "--num-rounds", "500", environment=None)
    started.wait_for(tmp_path / "runs" / "run" / "rounds.jsonl")
    started.process.send_signal(number)
    ended = started.wait()
    assert ended.exit_code == code
    assert not ended.processes_left()


@pytest.mark.slow
def test_plain_flwr_run(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path / "superlink.log") as link:
        process = link.start_flwr(
            *("run", str(REPOSITORY), CONNECTION, "--stream"),
            *("--run-config", "num-rounds=1"),
            log_path=tmp_path / "log.txt",
        )
        assert process.wait() == 0
        log = (tmp_path / "log.txt").read_text()
        assert link.last_run()["status"] == "finished:completed", log
    assert "Aggregated MetricRecord" in log

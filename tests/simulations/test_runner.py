"""``python -m simulations``: what needs no Flower runtime."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from simulations.config import default_run_config
from simulations.data.dataset import DATA_VARIABLE
from simulations.errors import SimulationError
from simulations.experiments import EXPERIMENTS
from simulations.results import RunFolder
from simulations.runner.arguments import read_arguments
from tests.simulations.runs import Started, run

SMALL = (
    *("--engine", "loopback", "--num-clients", "3", "--num-rounds", "2"),
    *("--set", "train-samples=100"),
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uplink", "topk(fraction=2)"], r"fraction in \(0, 1\], found 2"),
        (["--uplink", "nonsense()"], "no compressor 'nonsense'.*topk"),
        (["--feedback", "magic"], "no 'magic'.*ef21"),
        (["--dataset", "nope"], "unknown dataset 'nope'"),
        (["--model", "nope"], "unknown model 'nope'"),
        (["--strategy", "nope"], "unknown strategy 'nope'"),
        (["--set", "partition=nope"], "unknown partition 'nope'"),
        (["--set", "speed=1"], "unknown key 'speed'"),
        (["--set", "speed"], "expects KEY=VALUE"),
        (["--set", "out=/somewhere"], "out is set by --out"),
        (["digits-compare", "--set", "checkpoint=/c"], "one checkpoint cannot serve 6"),
        (["--num-rounds", "0"], "num-rounds must be from 1"),
        (["--num-clients", "0"], "--num-clients must be at least 1"),
        (["--num-jobs", "0"], "--num-jobs must be at least 1"),
        (["--resume"], "--resume needs the --name"),
        (["nope"], "unknown experiment 'nope'.*digits"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(SimulationError, match=message) as caught:
        read_arguments(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_run_configs(name: str) -> None:
    runs = EXPERIMENTS[name].runs({}, None)
    assert len({run.name for run in runs}) == len(runs)
    assert read_arguments([name]).runs == runs


def test_the_default_experiment_is_the_default_run_config() -> None:
    (only,) = read_arguments([]).runs
    assert only.settings.to_run_config() == default_run_config()
    assert only.num_clients >= 20


def test_flags_change_all_runs_and_a_seed_replaces_the_seeds() -> None:
    runs = read_arguments(
        ["digits-compare", "--seed", "5", "--set", "lr=0.5", "--num-clients", "7"]
    ).runs
    assert [run.name for run in runs] == ["identity/seed-5", "default/seed-5"]
    assert {(r.settings.seed, r.settings.lr, r.num_clients) for r in runs} == {
        (5, 0.5, 7)
    }


def test_a_run_from_another_folder(tmp_path: Path) -> None:
    ended = run(tmp_path, *SMALL, "--name", "one")
    assert ended.exit_code == 0, ended
    assert "round 2/2" in ended.stdout
    assert "topk(fraction=0.1)" in ended.stdout
    folder = tmp_path / "runs" / "one"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "log.txt",
        "partition.json",
        "plot.png",
        "rounds.jsonl",
    }
    assert len(RunFolder(folder).read_rounds()) == 3
    assert not ended.processes_left()
    again = run(tmp_path, *SMALL, "--name", "one")
    assert again.exit_code == 1
    assert "holds another run already" in again.stderr


def test_several_settings_and_seeds(tmp_path: Path) -> None:
    ended = run(tmp_path, "digits-compare", *SMALL, "--out", "here", "--name", "c")
    assert ended.exit_code == 0, ended
    found = sorted((tmp_path / "here" / "c").rglob("rounds.jsonl"))
    assert len(found) == 6
    rows = [line for line in ended.stdout.splitlines() if "│" in line]
    assert len(rows) == 2, ended.stdout
    assert all("±" in row for row in rows)


def test_an_experiment_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    arguments = ("digits-compare", *SMALL, "--seed", "4", "--name", "d")
    assert run(tmp_path, *arguments).exit_code == 0
    done, stopped = (
        tmp_path / "runs" / "d" / name / "seed-4" for name in ("default", "identity")
    )
    before = {name: RunFolder(name).read_rounds() for name in (done, stopped)}
    lines = (stopped / "rounds.jsonl").read_text().splitlines(keepends=True)
    (stopped / "rounds.jsonl").write_text("".join(lines[:-1]))

    ended = run(tmp_path, *arguments, "--resume")
    assert ended.exit_code == 0, ended
    assert "identity/seed-4: round 2/2" in ended.stdout
    assert "default/seed-4: round" not in ended.stdout
    assert len([line for line in ended.stdout.splitlines() if "│" in line]) == 2
    assert RunFolder(done).read_rounds() == before[done]
    again = [entry["accuracy"] for entry in RunFolder(stopped).read_rounds()]
    assert again == [entry["accuracy"] for entry in before[stopped]]

    other = run(tmp_path, *arguments, "--resume", "--set", "lr=0.3")
    assert other.exit_code == 1
    assert "holds a run with another lr" in other.stderr
    assert RunFolder(done).read_rounds() == before[done]


def test_a_missing_data_folder_relative_to_the_user(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        *(*SMALL, "--dataset", "fashion-mnist", "--model", "cnn"),
        environment={DATA_VARIABLE: "my-data"},
    )
    assert ended.exit_code == 1
    assert ended.stderr.startswith("Error: the ServerApp failed: Fashion-MNIST not")
    assert str(tmp_path / "my-data" / "fashion-mnist") in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not ended.processes_left()


def test_a_killed_process_is_an_error(tmp_path: Path) -> None:
    started = Started(
        tmp_path, *SMALL, "--num-rounds", "500", "--name", "k", environment=None
    )
    started.wait_for(tmp_path / "runs" / "k" / "rounds.jsonl")
    started.find("spawn_main").kill()
    ended = started.wait()
    assert ended.exit_code == 1
    assert "ended with code -9 without giving a reason" in ended.stderr
    assert not ended.processes_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (15, 143)])
def test_signals_stop_everything(tmp_path: Path, number: int, code: int) -> None:
    started = Started(
        tmp_path, *SMALL, "--num-rounds", "500", "--name", "s", environment=None
    )
    started.wait_for(tmp_path / "runs" / "s" / "rounds.jsonl")
    started.process.send_signal(number)
    ended = started.wait()
    assert ended.exit_code == code
    assert "Traceback" not in ended.stderr
    assert not ended.processes_left()

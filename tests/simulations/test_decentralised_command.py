"""The command of decentralised training: arguments, files, tables, figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_lowrank import topology
from simulations.decentralised.arguments import read_arguments
from simulations.decentralised.experiments import EXPERIMENTS
from simulations.decentralised.graphs import GRAPHS, read_graph
from simulations.decentralised.main import main
from simulations.decentralised.report import read_results
from simulations.decentralised.settings import Settings
from simulations.errors import SimulationError
from simulations.results import RunFolder

_SMALL = ("--model", "logistic", "--epochs", "1", "--train-samples", "200")


def test_settings_alone_make_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*_SMALL, "--topology", "cycle:5", "--batch-size", "8", "--name", "a"]
    compressed = ["--compressor", "randk(fraction=0.5)"]
    assert main([*arguments, *compressed, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "own: epoch 1, accuracy" in shown
    assert "MB/edge" in shown
    folder = RunFolder(tmp_path / "a" / "own" / "seed-0")
    (entry,) = folder.read_rounds()
    assert entry["step"] == 5
    assert len(entry["accuracy_agents"]) == 5
    assert entry["messages"] == 5 * 10
    graph = folder.read("partition.json")
    assert graph is not None
    assert graph["samples"] == [40] * 5
    assert graph["gamma"] in (0.1, 0.2, 0.4, 0.8)
    config = folder.read("config.json")
    assert config is not None
    assert config["run_config"]["topology"] == "cycle:5"
    for picture in ("curves.png", "graph-own.png"):
        assert (tmp_path / "a" / picture).stat().st_size > 10_000
    # A folder that holds a run is not written into.
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    assert "holds another run already" in capsys.readouterr().err


def test_help_says_what_every_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--batch-size INT Of each agent. (default: 16)" in shown
    assert "--weights STR One of max_degree, metropolis, best_constant" in shown
    assert "a shorter list is repeated, nothing means 1" in shown
    settings = shown[shown.index("--dataset STR O") :]
    assert settings.count("(default: ") == len(vars(Settings())) - 1  # not out
    assert ". (default: " in settings
    assert "STR (default" not in settings


@pytest.mark.parametrize("epochs", ["4", "5"])
def test_curves_with_markers_and_without(epochs: str, tmp_path: Path) -> None:
    """No library warns of how they are drawn, which a user would see."""
    arguments = [*_SMALL, "--train-samples", "40", "--batch-size", "8", "--name", "d"]
    assert main([*arguments, "--epochs", epochs, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "d" / "curves.png").stat().st_size > 10_000


def test_an_experiment_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["digits", *_SMALL, "--only", "single,gossip-2", "--num-jobs", "2"]
    more = ["--max-steps", "2", "--batch-size", "4", "--out", str(tmp_path)]
    assert main([*arguments, *more, "--name", "b"]) == 0
    results = {result.name: result for result in read_results(tmp_path / "b")}
    assert set(results) == {"single", "gossip-2"}
    assert results["single"].last["bytes"] == 0
    assert results["gossip-2"].last["messages"] == 2 * 2 * 2
    assert (tmp_path / "b" / "graph-gossip-2.png").is_file()
    assert not (tmp_path / "b" / "graph-single.png").exists()


def test_an_experiment_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["digits", *_SMALL, "--max-steps", "2", "--batch-size", "4"]
    place = ["--out", str(tmp_path), "--name", "c", "--resume"]
    assert main([*one, *place, "--only", "gossip-2"]) == 0
    done = RunFolder(tmp_path / "c" / "gossip-2" / "seed-0")
    (before,) = done.read_rounds()
    assert main([*one, *place, "--only", "gossip-2,consensus"]) == 0
    assert done.read_rounds() == [before]
    assert [r.name for r in read_results(tmp_path / "c")] == ["gossip-2", "consensus"]
    # What was not complete starts anew.
    (tmp_path / "c" / "consensus" / "seed-0" / "rounds.jsonl").write_text("")
    assert main([*one, *place, "--only", "consensus"]) == 0
    (entry,) = RunFolder(tmp_path / "c" / "consensus" / "seed-0").read_rounds()
    assert entry["step"] == 2
    assert main([*one, *place, "--only", "gossip-2", "--lr", "0.3"]) == 1
    assert "holds a run with another lr" in capsys.readouterr().err
    assert done.read_rounds() == [before]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume"], "--resume needs the --name"),
        (["nothing"], "unknown experiment 'nothing'"),
        (["digits", "--only", "x"], "unknown setting 'x'"),
        (["--topology", "ring:4"], "unknown topology 'ring', choose one of cycle"),
        (["--topology", "cycle:x"], "'cycle:x': it cannot be read; examples: cycle:4"),
        (["--topology", "torus:3"], "'torus:3': it cannot be read"),
        (["--topology", "cycle:4.5"], "'cycle:4.5': it cannot be read"),
        (["--topology", "random:9,3,0"], "3 edges is not connected"),
        (["--weights", "heavy"], "unknown weights 'heavy'"),
        (["--model", "vgg"], "unknown model 'vgg'"),
        (["--compressor", "topk("], "--compressor: spec: cannot read"),
        (["--method", "ring"], "--method must be one of consensus, gossip"),
        (["--method", "gossip", "--compressor", "sign()"], "--compressor is for"),
        (["--method", "gossip", "--mix-periods", "2"], "--mix-periods is for"),
        (["--train-periods", "1,0"], "--train-periods must be at most 4 numbers"),
        (["--mix-periods", "1,1,1,1,1"], "--mix-periods must be at most 4 numbers"),
        (["--mix-periods", "a"], "--mix-periods must be numbers with commas between"),
        (["--milestones", "0.5,2"], "--milestones must be between 0 and 1"),
        (["--gamma", "0.3"], "0.3 with --compressor 'none'"),
        (
            ["--gamma", "5", "--compressor", "sign()"],
            "at most 1 (0 finds one), found 5",
        ),
        (["--topology", "chordal-cycle:9"], "expected a prime number of vertices"),
        (["--topology", "random-regular:5,3,0"], "no such graph can be drawn"),
        (["--mix-every", "0"], "--mix-every must be at least 1, found 0"),
        (["--lr", "nan"], "--lr must be at least 0, found nan"),
        (["--num-jobs", "0"], "--num-jobs must be at least 1"),
    ],
)
def test_what_cannot_run_is_refused_at_once(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("num_jobs", ["1", "2"])
def test_a_run_that_diverges_does_not_hide_the_others(
    num_jobs: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["digits", "--only", "compressed,single", "--model", "logistic"]
    arguments += ["--lr", "1e38", "--warmup-epochs", "0", "--max-steps", "9"]
    arguments += ["--num-jobs", num_jobs]
    assert main([*arguments, "--out", str(tmp_path), "--name", "x"]) == 1
    told = capsys.readouterr()
    assert "compressed/seed-0: diverged in step" in told.err
    assert "give a smaller --lr or --gamma" in told.err
    assert "single" in told.out
    assert (tmp_path / "x" / "curves.png").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (("--compressor", "eden(bits=2)"), "expected a contractive or an unbiased"),
        (("--batch-size", "500"), "an agent has only 50 samples"),
        (("--device", "abacus"), "--device 'abacus'"),
    ],
)
def test_what_shows_only_later_is_told_as_well(
    changes: tuple[str, str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*_SMALL, *changes, "--out", str(tmp_path)]) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cycle:4", topology.cycle(4)),
        ("cycle:50,7,15", topology.cycle(50, [7, 15])),
        ("torus:6x6", topology.torus(6, 6)),
        ("complete:1", topology.complete(1)),
        ("star:9", topology.star(9)),
        ("exponential:16", topology.exponential(16)),
        ("margulis:5", topology.margulis(5)),
        ("chordal-cycle:23", topology.chordal_cycle(23)),
        ("random-regular:25,4,1", topology.random_regular(25, 4, 1)),
        ("random:12,26,22", topology.random_edges(12, 26, 22)),
        ("small-world:30,4,0.2,0", topology.small_world(30, 4, 0.2, 0)),
        ("edges:0-1,1-2,2-0", topology.cycle(3)),
    ],
)
def test_texts_of_graphs(text: str, expected: topology.Topology) -> None:
    assert read_graph(text) == expected


def test_every_graph_of_the_table_is_tried() -> None:
    tried = {text.partition(":")[0] for text in _texts()}
    assert tried == {*GRAPHS, "edges"}


def _texts() -> list[str]:
    (mark,) = test_texts_of_graphs.pytestmark  # type: ignore[attr-defined]
    return [text for text, _ in mark.args[1]]


def test_experiments_are_settings(tmp_path: Path) -> None:
    for name, settings in EXPERIMENTS.items():
        found = read_arguments([name, "--out", str(tmp_path), "--name", "x"])
        assert list(found.runs) == list(settings)
    fashion = read_arguments(["fashion", "--only", "cycle,torus", "--seed", "3"]).runs
    cycle, torus = fashion["cycle"], fashion["torus"]
    assert (cycle.topology, cycle.batch_size) == ("cycle:4", 25)
    assert (torus.topology, torus.batch_size) == ("torus:6x6", 6)
    assert cycle.seed == torus.seed == 3
    assert cycle.out.endswith("cycle/seed-3")


def test_settings_are_written_as_the_flags_are_named() -> None:
    written = Settings().to_run_config()
    assert json.loads(json.dumps(written))["mix-every"] == 1
    with pytest.raises(SimulationError, match="--epochs must be at least 1"):
        Settings(epochs=0)

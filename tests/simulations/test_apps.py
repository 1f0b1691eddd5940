"""The real server and client apps over the loopback grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fl_lowrank.envelope import Request
from fl_lowrank.errors import ProtocolError, SettingError
from simulations.client_app import app as client_app
from simulations.config import Settings, default_run_config
from simulations.data import Partitioning, partition_dataset
from simulations.errors import SimulationError
from simulations.loopback import LoopbackGrid
from simulations.results import RunFolder
from simulations.server_app import run_federated
from strategies.packing import unpack

NUM_CLIENTS = 4
SMALL = {
    "train-samples": 200,
    "num-rounds": 2,
    "local-epochs": 1,
    "fraction-evaluate": 0.5,
}


def _settings(**changes: Any) -> Settings:
    renamed = {key.replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_run_config(default_run_config() | SMALL | renamed)


def _grid(settings: Settings) -> LoopbackGrid:
    return LoopbackGrid(client_app, NUM_CLIENTS, run_config=settings.to_run_config())


def test_a_run_writes_its_files(tmp_path: Path) -> None:
    settings = _settings(out=str(tmp_path / "run"))
    result = run_federated(_grid(settings), settings)
    folder = RunFolder(tmp_path / "run")
    config, partition = folder.read("config.json"), folder.read("partition.json")
    assert config is not None
    assert config["run_config"] == settings.to_run_config()
    assert set(config["versions"]) >= {"fl-lowrank", "flwr", "python", "torch"}
    assert partition is not None
    assert partition["num_clients"] == NUM_CLIENTS
    assert partition["num_samples"] == 200
    rounds = folder.read_rounds()
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    assert rounds[0]["bytes_up"] == 0
    for entry in rounds[1:]:
        assert entry["num_replies"] == NUM_CLIENTS
        assert entry["bytes_up_dense"] == NUM_CLIENTS * 4 * 55_018
        assert 0 < entry["bytes_up"] < entry["bytes_up_dense"] / 20
        assert entry["bytes_down"] >= entry["bytes_up_dense"]
        assert entry["bytes_down_evaluate"] > 0
        found = result.evaluate_metrics_serverapp[entry["round"]]
        assert entry["accuracy"] == found["accuracy"]
    assert folder.read("error.json") is None


def test_models_come_compressed(tmp_path: Path) -> None:
    settings = _settings(
        out=str(tmp_path / "run"), downlink="uniform(bits=4)", num_rounds=3
    )
    run_federated(_grid(settings), settings)
    _, first, *others = RunFolder(tmp_path / "run").read_rounds()
    assert first["bytes_down"] > NUM_CLIENTS * 4 * 55_018
    for entry in others:
        sent = entry["bytes_down"] + entry["bytes_down_evaluate"]
        assert 0 < sent < entry["bytes_down_dense"] / 6
        assert entry["num_replies"] == NUM_CLIENTS


def test_the_server_remembers_every_client_if_asked(tmp_path: Path) -> None:
    def accuracies(memory: str) -> list[float]:
        settings = _settings(
            out=str(tmp_path / memory), memory=memory, feedback="ef21", num_rounds=4
        )
        settings = replace(settings, fraction_train=0.5)
        run_federated(_grid(settings), settings)
        return [r["accuracy"] for r in RunFolder(tmp_path / memory).read_rounds()]

    # The mean of the responders' vectors, and a share of the sum, are not the same.
    assert accuracies("per-node") != accuracies("sum")
    with pytest.raises(SimulationError, match="unknown memory 'none'"):
        run_federated(_grid(s := _settings(memory="none")), s)


def test_the_model_is_evaluated_every_few_rounds(tmp_path: Path) -> None:
    settings = _settings(
        out=str(tmp_path / "run"), uplink="none", num_rounds=4, evaluate_every=3
    )
    result = run_federated(_grid(settings), settings)
    rounds = RunFolder(tmp_path / "run").read_rounds()
    assert [entry["round"] for entry in rounds] == [0, 1, 2, 3, 4]
    evaluated = [entry["round"] for entry in rounds if "accuracy" in entry]
    assert evaluated == [0, 3, 4]  # and always after the last round
    assert list(result.evaluate_metrics_serverapp) == evaluated


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def run(name: str, num_rounds: int) -> list[dict[str, Any]]:
        settings = _settings(
            out=str(tmp_path / name),
            checkpoint=str(tmp_path / f"{name}.ckpt"),
            num_rounds=num_rounds,
        )
        run_federated(_grid(settings), settings)
        return RunFolder(tmp_path / name).read_rounds()

    run("stopped", 1)
    rounds = run("stopped", 2)
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    # Only the memories differ: those of loopback clients ended with their run.
    assert rounds[:2] == [
        entry | {key: value for key, value in mine.items() if "seconds" in key}
        for entry, mine in zip(run("whole", 2)[:2], rounds, strict=False)
    ]


def test_a_run_goes_on_without_the_memory_of_those_it_is_told(tmp_path: Path) -> None:
    settings = _settings(
        out=str(tmp_path / "run"),
        checkpoint=str(tmp_path / "run.ckpt"),
        feedback="ef21",
        memory="per-node",
        num_rounds=1,
    )
    grid = _grid(settings)
    run_federated(grid, settings)
    grid.offline.update(grid.node_ids[:2])
    run_federated(
        grid,
        replace(settings, num_rounds=2, evict="partition-0, partition-1", max_norm=0.0),
    )
    members = unpack(Path(settings.checkpoint).read_bytes())["book"]["members"]
    assert set(members) == {f"partition-{i}" for i in range(2, len(grid.node_ids))}


def test_runs_repeat_from_the_seed(tmp_path: Path) -> None:
    def accuracies(name: str, seed: int) -> list[float]:
        settings = _settings(
            out=str(tmp_path / name),
            seed=seed,
            fraction_train=0.5,
            uplink="shrunk(inner=randk(fraction=0.1))",
        )
        run_federated(_grid(settings), settings)
        return [entry["loss"] for entry in RunFolder(tmp_path / name).read_rounds()]

    first = accuracies("first", 0)
    assert accuracies("again", 0) == first
    assert accuracies("other", 1) != first


def test_clients_find_importance_weights(tmp_path: Path) -> None:
    def losses(name: str) -> list[float]:
        settings = _settings(
            out=str(tmp_path / name),
            uplink="md_weighted_greedy(fraction=0.05, refresh=2, steps=4) >> natural()",
            num_rounds=3,
            fraction_evaluate=0.0,
            model="digits-cnn-bn",
        )
        run_federated(_grid(settings), settings)
        rounds = RunFolder(tmp_path / name).read_rounds()[1:]
        assert [entry["extra_gradients"] for entry in rounds] == [16, 0, 16]
        for entry in rounds:
            assert entry["num_replies"] == NUM_CLIENTS
            assert 0 < entry["bytes_up"] < entry["bytes_up_dense"] / 40
        return [entry["loss"] for entry in rounds]

    assert losses("first") == losses("again")


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_strategies_without_compression(tmp_path: Path, strategy: str) -> None:
    settings = _settings(
        out=str(tmp_path), uplink="none", strategy=strategy, server_lr=0.01
    )
    result = run_federated(_grid(settings), settings)
    assert set(result.train_metrics_clientapp) == {1, 2}
    last = RunFolder(tmp_path).read_rounds()[-1]
    # Arrays of Flower's own have a header of about 128 bytes each.
    assert last["bytes_up_dense"] < last["bytes_up"] < 1.01 * last["bytes_up_dense"]


def test_clients_train_on_their_share_and_hold_some_out() -> None:
    settings = _settings()
    parts = partition_dataset(Partitioning.of(settings), NUM_CLIENTS)
    grid = _grid(settings)
    counts: dict[str, list[int]] = {"train": [], "evaluate": []}

    def note(message: Message) -> None:
        # Not the answers to the question for partitions at the start.
        for metrics in message.content.metric_records.values():
            counts[message.metadata.message_type].append(int(metrics["num-examples"]))

    grid.on_reply = note
    run_federated(grid, settings)
    sizes = [len(part) for part in parts]
    held = [int(0.1 * size) for size in sizes]
    trained = [size - out for size, out in zip(sizes, held, strict=True)]
    assert sorted(counts["train"]) == sorted(trained * 2)
    assert counts["evaluate"]
    assert set(counts["evaluate"]) <= set(held)


def test_when_every_client_fails_without_compression(tmp_path: Path) -> None:
    settings = _settings(out=str(tmp_path), uplink="none", fraction_evaluate=0.0)
    grid = _grid(settings)
    grid.client_app = lambda message, context: 1 / 0
    with pytest.raises(SimulationError, match="no client returned a usable update"):
        run_federated(grid, settings)
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["type"] == "SimulationError"


def test_when_every_client_diverges(tmp_path: Path) -> None:
    settings = _settings(out=str(tmp_path), lr=1e9, num_rounds=5)
    with pytest.raises(ProtocolError, match="without a usable reply"):
        run_federated(_grid(settings), settings)
    assert (RunFolder(tmp_path).read("error.json") or {})["type"] == "ProtocolError"


@pytest.mark.parametrize(
    ("feedback", "uplink", "sent"),
    [
        ("ef21sgdm(momentum=0.5)", "topk(fraction=0.1)", "ef21sgdm(momentum=0.5)"),
        ("diana", "*: randk(fraction=0.25)", "diana(rate=0.25"),
        ("dasha", "*: natural_stochastic()", "dasha(rate=0.8)"),
    ],
)
def test_feedbacks_train_and_get_their_rates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    feedback: str,
    uplink: str,
    sent: str,
) -> None:
    texts = set()
    pack = Request.pack

    def note(request: Request) -> bytes:
        texts.add(request.feedback)
        return pack(request)

    monkeypatch.setattr(Request, "pack", note)
    settings = _settings(
        out=str(tmp_path), uplink=uplink, feedback=feedback, num_rounds=4, lr=0.02
    )
    run_federated(_grid(settings), settings)
    rounds = RunFolder(tmp_path).read_rounds()
    (text,) = {text for text in texts if text != "plain"}
    assert text.startswith(sent)
    assert rounds[-1]["loss"] < rounds[0]["loss"]


@pytest.mark.parametrize(
    ("feedback", "uplink", "advice"),
    [
        ("ef", "randk(fraction=0.1)", r"which '.*weight' would use.*shrunk\(inner"),
        ("diana", "topk(fraction=0.1)", "needs unbiased compression"),
    ],
)
def test_a_wrong_pair_is_refused_before_any_round(
    tmp_path: Path, feedback: str, uplink: str, advice: str
) -> None:
    settings = _settings(out=str(tmp_path), uplink=uplink, feedback=feedback)
    with pytest.raises(SettingError, match=advice):
        run_federated(_grid(settings), settings)
    assert RunFolder(tmp_path).read_rounds() == []

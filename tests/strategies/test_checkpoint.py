"""A training that is interrupted and resumed is the training itself."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Result,
    Strategy,
)

from fl_lowrank import files
from fl_lowrank.errors import ProtocolError, SettingError, WireError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from strategies.inner_state import InnerState
from strategies.packing import is_plain, pack, unpack

from .federation import LR, NUM_NODES, initial_arrays, quadratic_app, train

INNERS = {
    "fedavg": lambda: FedAvg(fraction_train=0.5),
    "fedavgm": lambda: FedAvgM(server_learning_rate=0.9, server_momentum=0.8),
    "fedadam": lambda: FedAdam(eta=0.3),
    "fedyogi": lambda: FedYogi(eta=0.3),
    "fedadagrad": lambda: FedAdagrad(eta=0.3),
}
UPLINK = "*: topk(fraction=0.2)"


class Killed(Exception):
    pass


def killing(after: int) -> Any:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == after:
            raise Killed
        return MetricRecord({"norm": float(np.linalg.norm(arrays["w"].numpy()))})

    return evaluate


def interrupted(make: Any, path: Path, *, at: int, num_rounds: int) -> Result:
    """Kill the server after a round, and let a new process go on."""
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    with pytest.raises(Killed):
        train(make(path), grid=grid, num_rounds=num_rounds, evaluate_fn=killing(at))
    random.seed(99)  # another process
    return make(path).start(
        grid,
        initial_arrays(),
        num_rounds=num_rounds,
        train_config=ConfigRecord({"lr": LR}),
        evaluate_fn=killing(-1),
        resume=path,
    )


@pytest.mark.parametrize("feedback", ["ef", "ef21", "plain"])
@pytest.mark.parametrize("name", INNERS)
def test_resumed_is_as_if_never_interrupted(
    name: str, feedback: str, tmp_path: Path
) -> None:
    def make(path: Path | None) -> Compressed:
        return Compressed(INNERS[name](), UPLINK, feedback, checkpoint=path)

    whole = train(make(None), num_rounds=7, evaluate_fn=killing(-1))
    resumed = interrupted(make, tmp_path / "c", at=3, num_rounds=7)
    for array, wanted in zip(
        resumed.arrays.values(), whole.arrays.values(), strict=True
    ):
        assert np.array_equal(array.numpy(), wanted.numpy())
    metrics = resumed.train_metrics_clientapp
    assert list(metrics) == list(range(1, 8))
    for number, wanted in whole.train_metrics_clientapp.items():
        timed = {"encode_seconds", "decode_seconds"}
        for key in wanted.keys() - timed:
            assert metrics[number][key] == wanted[key], (number, key)
    evaluated = resumed.evaluate_metrics_serverapp
    # Round 3 was killed before it was evaluated.
    assert list(evaluated) == [0, 1, 2, 4, 5, 6, 7]
    assert evaluated[7] == whole.evaluate_metrics_serverapp[7]


SCHEDULE = "*: topk(fraction=cosine(1.0, 0.1, rounds=6))"
DOWN = "*: ecsq(nmse=exponential(0.01, 0.3, rounds=6))"


@pytest.mark.parametrize("downlink", [None, DOWN])
@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_schedules_go_on_with_the_round(
    feedback: str, downlink: str | None, tmp_path: Path
) -> None:
    strategies: list[Compressed] = []

    def make(path: Path | None) -> Compressed:
        made = Compressed(
            FedAvg(), SCHEDULE, feedback, downlink=downlink, checkpoint=path
        )
        strategies.append(made)
        return made

    whole = train(make(None), num_rounds=7, evaluate_fn=killing(-1))
    resumed = interrupted(make, tmp_path / "c", at=3, num_rounds=7)
    found, wanted = resumed.arrays["w"].numpy(), whole.arrays["w"].numpy()
    assert np.array_equal(found, wanted)
    sizes = [[r["bytes_up"] for r in s.ledger.rounds()] for s in strategies]
    assert sizes[2] == sizes[0]
    assert len(set(sizes[0])) >= 5  # they follow the schedule


@pytest.mark.parametrize("memory", ["sum", "per-node"])
def test_an_eviction_is_in_the_checkpoint_at_once(memory: str, tmp_path: Path) -> None:
    """The server dies right after it; what was taken out must not come back."""
    path = tmp_path / "c"

    def make() -> Compressed:
        return Compressed(FedAvg(), UPLINK, "ef21", checkpoint=path, memory=memory)

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            strategy.evict("partition-1")
            raise Killed

    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    strategy = make()
    with pytest.raises(Killed):
        train(strategy, grid=grid, num_rounds=4, evaluate_fn=evaluate)
    assert "partition-1" not in members_in(path)
    assert len(members_in(path)) == (0 if memory == "sum" else NUM_NODES - 1)
    make().start(grid, initial_arrays(), num_rounds=4, resume=path)
    assert len(members_in(path)) == NUM_NODES


@pytest.mark.parametrize("memory", ["sum", "per-node"])
def test_a_run_goes_on_without_a_clients_memory(memory: str, tmp_path: Path) -> None:
    path = tmp_path / "c"

    def make() -> Compressed:
        return Compressed(FedAvg(), UPLINK, "ef21", checkpoint=path, memory=memory)

    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    train(make(), grid=grid, num_rounds=3)
    grid.offline.add(grid.node_ids[1])
    make().start(
        grid, initial_arrays(), num_rounds=4, resume=path, evict=["partition-1"]
    )
    assert members_in(path) == {f"partition-{i}" for i in (0, 2, 3)}


def members_in(path: Path) -> set[str]:
    members = unpack(path.read_bytes())["book"]["members"]
    return {client for client, (applied, *_) in members.items() if applied}


def test_what_grows_in_place_is_resumed() -> None:
    class Noting(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.norms: list[float] = []
            self.best: dict[str, float] = {"loss": 1.0}

    used, fresh = Noting(), Noting()
    state = InnerState(used)
    assert state.plain() == [["Noting", {}]]
    used.norms.append(0.5)
    used.best["loss"] = 0.25
    used.newest = None
    InnerState(fresh).resume(unpack(b"".join(pack(state.plain()))))
    assert (fresh.norms, fresh.best, fresh.newest) == ([0.5], {"loss": 0.25}, None)


def test_ledger_goes_on(tmp_path: Path) -> None:
    strategies: list[Compressed] = []

    def make(path: Path | None) -> Compressed:
        strategies.append(Compressed(FedAvg(), UPLINK, checkpoint=path))
        return strategies[-1]

    train(make(None), num_rounds=5)
    interrupted(make, tmp_path / "c", at=2, num_rounds=5)
    whole, _, resumed = strategies
    for key in ("round", "bytes_up", "bytes_down", "bytes_down_evaluate"):
        found = [r[key] for r in resumed.ledger.rounds()]
        wanted = [r[key] for r in whole.ledger.rounds()]
        if key == "bytes_down_evaluate":
            wanted[1] = 0  # came after the checkpoint, and went with the server
        assert found == wanted, key


def test_a_finished_training_gives_its_result_again(tmp_path: Path) -> None:
    path = tmp_path / "c"
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    first = train(Compressed(FedAvg(), UPLINK, checkpoint=path), grid=grid)
    num_events = len(grid.events)
    again = Compressed(FedAvg(), UPLINK).start(
        grid, initial_arrays(), num_rounds=2, resume=path
    )
    assert len(grid.events) == num_events
    assert np.array_equal(again.arrays["w"].numpy(), first.arrays["w"].numpy())
    assert again.train_metrics_clientapp == first.train_metrics_clientapp
    assert again.evaluate_metrics_clientapp == first.evaluate_metrics_clientapp


def test_adaptive_clipping_norm_is_resumed(tmp_path: Path) -> None:
    def make() -> Strategy:
        return DifferentialPrivacyClientSideAdaptiveClipping(
            FedAvg(), noise_multiplier=0.0, num_sampled_clients=NUM_NODES
        )

    used = make()
    state = InnerState(used)
    used.clipping_norm *= 0.7
    used.strategy.current_arrays = {"w": np.ones(3)}
    plain = unpack(b"".join(pack(state.plain())))
    fresh = make()
    InnerState(fresh).resume(plain)
    assert fresh.clipping_norm == used.clipping_norm
    assert np.array_equal(fresh.strategy.current_arrays["w"], np.ones(3))
    with pytest.raises(
        SettingError, match="AdaptiveClipping around FedAvg, found FedA"
    ):
        InnerState(FedAvg()).resume(plain)


def test_settings_are_those_of_the_new_strategy(tmp_path: Path) -> None:
    """A checkpoint must not bring back what the user has changed since."""
    path = tmp_path / "c"
    train(Compressed(FedAdam(eta=0.3), UPLINK, checkpoint=path))
    inner = FedAdam(eta=0.01)
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    Compressed(inner, UPLINK).start(grid, initial_arrays(), num_rounds=3, resume=path)
    assert inner.eta == 0.01
    assert inner.m_t is not None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    train(Compressed(FedAvg(), UPLINK, checkpoint=path))
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)

    def resume(arrays: ArrayRecord, **settings: Any) -> None:
        usual = {"inner": FedAvg(), "uplink": UPLINK}
        strategy = Compressed(**(usual | settings))
        strategy.start(grid, arrays, num_rounds=3, resume=path)

    with pytest.raises(SettingError, match='written with feedback="ef", found "ef21"'):
        resume(initial_arrays(), feedback="ef21")
    with pytest.raises(SettingError, match="other names, shapes or dtypes"):
        resume(ArrayRecord({"w": Array(np.zeros(3, np.float32))}))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ProtocolError, match="damaged"):
        resume(initial_arrays())
    path.unlink()
    with pytest.raises(ProtocolError, match="there is no checkpoint"):
        resume(initial_arrays())
    assert not grid.events


def test_a_privacy_accountant_is_not_forgotten_silently(tmp_path: Path) -> None:
    inner = FedAvg()
    inner.accountant = object()
    with pytest.raises(SettingError, match="accountant of FedAvg cannot be saved"):
        train(Compressed(inner, UPLINK, checkpoint=tmp_path / "c"))


# --- bytes and files ------------------------------------------------------------------

VALUE = {
    "none": None,
    "numbers": [1, -(2**63), 2**64 - 1, 0.1, float("inf"), True],
    "text": "ä",
    "nested": {"a": [np.arange(6, dtype=np.int16).reshape(2, 3), {"b": []}]},
    "scalar": np.float32(0.5),
    "half": np.ones((0, 3), np.float16),
    "tensor": torch.arange(4.0, dtype=torch.float64),
    "model": initial_arrays(buffers=True),
    "metrics": MetricRecord({"loss": 0.25, "list": [1, 2], "n": 7}),
}


def test_plain_values_come_back() -> None:
    assert is_plain(VALUE)
    found = unpack(b"".join(pack(VALUE)))
    assert list(found) == list(VALUE)
    for name in ("none", "numbers", "text", "scalar", "metrics"):
        assert found[name] == VALUE[name]
    array = found["nested"]["a"][0]
    assert array.dtype == np.int16
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.flags.writeable
    assert found["half"].shape == (0, 3)
    assert torch.equal(found["tensor"], VALUE["tensor"])
    for key, array in VALUE["model"].items():
        assert found["model"][key].data == array.data


def test_what_is_not_plain_is_not_written() -> None:
    for value in (object(), print, {1: 2}, [b"x"], np.array([object()]), {"a": {2}}):
        assert not is_plain(value)


def test_damage_is_noticed() -> None:
    data = b"".join(pack(VALUE))
    for end in range(0, len(data), 7):
        with pytest.raises(WireError):
            unpack(data[:end])
    for place in range(0, len(data), 11):
        damaged = bytearray(data)
        damaged[place] ^= 4
        with pytest.raises(WireError):
            unpack(bytes(damaged))
    newer = b"FC\x09" + data[3:-4]
    with pytest.raises(WireError, match="version 1, found 9"):
        unpack(newer + zlib.crc32(newer).to_bytes(4, "little"))


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    files.write_atomically(path, [b"old"])

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, [b"new"])
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    files.write_atomically(path, [b"n", b"ew"])
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600

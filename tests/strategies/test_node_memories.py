"""What the server keeps of every client in mode ``per-node``, and taking it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import Context
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod, storage
from fl_lowrank.errors import ProtocolError, SettingError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from strategies.node_book import NodeBook
from strategies.node_memories import NodeMemories
from strategies.turns import Book

from .federation import NUM_NODES, logged, partition_of, quadratic_app, train

UPLINK = "*: topk(fraction=0.3)"


def per_node(folder: Path, feedback: str = "ef21", **settings: object) -> Compressed:
    uplink = UPLINK if feedback != "diana" else "*: randk(fraction=0.3)"
    return Compressed(
        FedAvg(), uplink, feedback, memory="per-node", memory_dir=folder, **settings
    )


def book_of(strategy: Compressed) -> Book:
    assert strategy._talk is not None
    return strategy._talk.book


def read(strategy: Compressed, client: str) -> torch.Tensor:
    book = book_of(strategy)
    assert isinstance(book, NodeBook)
    return book.memories.read(client, book.members[client].applied)["w"]


def total_of(strategy: Compressed) -> torch.Tensor:
    return sum(
        (read(strategy, client).double() for client in book_of(strategy).members),
        torch.zeros(()),
    )


@pytest.mark.parametrize("feedback", ["ef21", "diana", "ef21sgdm(momentum=0.5)"])
def test_files_equal_the_clients_memories_bit_for_bit(
    feedback: str, tmp_path: Path
) -> None:
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    strategy = per_node(tmp_path, feedback)
    train(strategy, grid=grid, num_rounds=6)
    for partition, node in enumerate(grid.node_ids):
        memory = storage.load(grid.contexts[node])
        assert memory is not None
        found = read(strategy, f"partition-{partition}")
        assert torch.equal(found, memory.tensors["w"])
        assert bool(found.any())
    assert len(list(tmp_path.rglob("*-*"))) == NUM_NODES  # older ones are removed
    drift = (book_of(strategy).total["w"] - total_of(strategy)).norm()
    assert drift <= 1e-14 * total_of(strategy).norm()


def test_evicting_subtracts_one_client_exactly(tmp_path: Path) -> None:
    strategy = per_node(tmp_path)

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 3:
            strategy.evict("partition-2", "unknown")
            found.append(book_of(strategy).total["w"].clone())
            wanted.append(total_of(strategy))

    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    with logged() as lines:
        train(strategy, num_rounds=5, evaluate_fn=evaluate)
    assert any("memory of partition-2 is taken out" in line for line in lines)
    assert (found[0] - wanted[0]).norm() <= 1e-14 * wanted[0].norm()
    book = book_of(strategy)
    assert book.num_resets == 0
    assert set(book.members) == {f"partition-{i}" for i in range(NUM_NODES)}
    # It has begun anew, and the two ends are one again.
    drift = (book.total["w"] - total_of(strategy)).norm()
    assert drift <= 1e-14 * total_of(strategy).norm()


def test_evicting_from_a_sum_begins_a_new_epoch() -> None:
    strategy = Compressed(FedAvg(), UPLINK, "ef21")
    epochs = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        epochs.append(book_of(strategy).epoch)
        if server_round == 2:
            strategy.evict("partition-0")
            strategy.evict("unknown")

    train(strategy, num_rounds=4, evaluate_fn=evaluate)
    assert epochs[1] == epochs[2] != epochs[3] == epochs[4]
    assert book_of(strategy).num_resets == 1


def silent(*partitions: int, after: int) -> object:
    """Some nodes fail from a round on."""

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        config = message.content.config_records.get("config", {})
        late = int(config.get("server-round", 0)) > after
        if late and partition_of(context) in partitions:
            raise RuntimeError("gone")
        return call_next(message, context)

    return mod


@pytest.mark.parametrize("memory", ["sum", "per-node"])
def test_who_was_silent_for_long_is_evicted(memory: str) -> None:
    app = quadratic_app([CompressionMod(), silent(3, after=2)])
    strategy = Compressed(FedAvg(), UPLINK, "ef21", memory=memory, evict_after=2)
    members = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        members.append("partition-3" in book_of(strategy).members)

    train(strategy, app, num_rounds=7, evaluate_fn=evaluate)
    assert members == [False, True, True, True, True, False, False, False]
    assert book_of(strategy).num_resets == (memory == "sum")
    assert len(book_of(strategy).members) == 3


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_files_begin_a_new_epoch(damage: str, tmp_path: Path) -> None:
    strategy = per_node(tmp_path)

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            for path in tmp_path.rglob("*-*"):
                if damage == "cut":
                    path.write_bytes(path.read_bytes()[:-7])
                else:
                    path.unlink()

    with logged() as lines:
        train(strategy, num_rounds=6, evaluate_fn=evaluate)
    assert sum("the server's memory of partition" in line for line in lines) == 4
    assert book_of(strategy).num_resets == 1
    drift = (book_of(strategy).total["w"] - total_of(strategy)).norm()
    assert drift <= 1e-14 * total_of(strategy).norm()


def test_any_client_key_is_a_file_name(tmp_path: Path) -> None:
    memories = NodeMemories(tmp_path, b"f" * 16)
    keys = ["../../etc/passwd", "a/b", "ä" * 120, "", "partition-1", "partition-10"]
    for turn, key in enumerate(keys):
        memories.write(key, turn, {"w": torch.full((2,), float(turn))})
    assert len(list(memories.folder.iterdir())) == len(keys)
    for turn, key in enumerate(keys):
        assert memories.read(key, turn)["w"].tolist() == [turn, turn]
        assert not memories.has(key, turn + 1)
    memories.keep_only({"a/b": 1})
    assert memories.has("a/b", 1)
    with pytest.raises(ProtocolError, match="memory of partition-1 is lost"):
        memories.read("partition-1", 4)
    assert np.all([p.parent == memories.folder for p in tmp_path.rglob("*-*")])


def test_what_is_asked_for_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="'sum' or 'per-node', found 'disk'"):
        Compressed(FedAvg(), UPLINK, "ef21", memory="disk")
    with pytest.raises(SettingError, match='memory="per-node" alone'):
        Compressed(FedAvg(), UPLINK, "ef21", memory_dir=tmp_path)


def test_error_feedback_needs_no_files(tmp_path: Path) -> None:
    strategy = Compressed(
        FedAvg(), UPLINK, "ef", memory="per-node", memory_dir=tmp_path
    )
    train(strategy)
    assert not list(tmp_path.iterdir())

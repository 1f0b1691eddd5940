"""The ledger against the arrays in messages, read back from their protobuf bytes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from flwr.app import ConfigRecord, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp.strategy import FedAvg, FedMedian

from clients import CompressionMod
from simulations.loopback import Fault, LoopbackGrid, RandomFaults, ScriptedFaults
from strategies import Compressed, Ledger
from strategies.ledger import Entry
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    changing,
    initial_arrays,
    quadratic_app,
    train,
)

NUM_ROUNDS = 3


def carried(message: Message) -> int:
    """Count the bytes of the arrays in a message that was sent as bytes."""
    parsed = ProtoMessage.FromString(message_to_proto(message).SerializeToString())
    content = message_from_proto(parsed).content
    return sum(
        len(array.data)
        for record in content.array_records.values()
        for array in record.values()
    )


class CountingGrid(LoopbackGrid):
    """Counts what passes, by round as the messages say, apart from the ledger."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.counted: Counter[tuple[str, str, int]] = Counter()
        self.rounds: dict[str, tuple[int, str]] = {}

    def send_and_receive(self, messages: object, **options: object) -> list[Message]:
        messages = list(messages)
        for message in messages:
            config = message.content.get("config", ConfigRecord())
            round_ = int(config.get("server-round", 0))
            kind = message.metadata.message_type
            self.counted["down", kind, round_] += carried(message)
        replies = super().send_and_receive(messages, **options)
        asked = {m.metadata.message_id: m for m in messages}
        for reply in replies:
            request = asked.get(reply.metadata.reply_to_message_id)
            if request is None or reply.has_error():
                continue
            round_ = int(request.content.get("config", {}).get("server-round", 0))
            kind = request.metadata.message_type
            self.counted["up", kind, round_] += carried(reply)
        return replies


@pytest.mark.parametrize("uplink", [None, "identity()", "topk(fraction=0.1)"])
@pytest.mark.parametrize("inner", [FedAvg, FedMedian])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_it_equals_what_the_messages_carry(
    uplink: str | None, inner: type[FedAvg], fraction: float
) -> None:
    grid = CountingGrid(quadratic_app(), NUM_NODES)
    strategy = Compressed(inner(fraction_train=fraction), uplink, "plain")
    arrays = initial_arrays(buffers=True)
    train(strategy, grid=grid, arrays=arrays, num_rounds=NUM_ROUNDS)

    rounds = strategy.ledger.rounds()
    assert [r["round"] for r in rounds] == [1, 2, 3]
    for row in rounds:
        number = int(row["round"])
        assert row["bytes_up"] == grid.counted["up", "train", number] > 0
        assert row["bytes_down"] == grid.counted["down", "train", number] > 0
        evaluated = grid.counted["down", "evaluate", number]
        assert row["bytes_down_evaluate"] == evaluated > 0
        assert row["bytes_up_evaluate"] == grid.counted["up", "evaluate", number] == 0
        assert row["num_replies"] == NUM_NODES * fraction
        assert row["bytes_up_dense"] == NUM_NODES * fraction * 4 * (DIM + 3 + 1)
    assert strategy.ledger.bytes_of(direction="up") == grid.array_bytes_up
    assert strategy.ledger.bytes_of(direction="down") == grid.array_bytes_down


def test_replies_that_are_left_out_have_still_been_sent() -> None:
    def spoil(reply: Message) -> None:
        reply.content["metrics"]["num-examples"] = -1

    app = quadratic_app([changing(spoil, 1), CompressionMod()])
    grid = LoopbackGrid(app, NUM_NODES)
    strategy = Compressed(FedAvg(), "identity()")
    train(strategy, grid=grid, num_rounds=NUM_ROUNDS)
    assert strategy.ledger.bytes_of(direction="up") == grid.array_bytes_up
    assert [r["dropped"] for r in strategy.ledger.rounds()] == [1] * NUM_ROUNDS


def test_lost_replies_count_nothing() -> None:
    lost = ScriptedFaults({(2, 0): Fault(reply=())})  # exchange 2 trains in round 1
    grid = LoopbackGrid(quadratic_app(), NUM_NODES, faults=lost)
    strategy = Compressed(FedAvg(), "identity()")
    train(strategy, grid=grid, num_rounds=2)
    first, second = strategy.ledger.rounds()
    assert (first["num_replies"], second["num_replies"]) == (3, 4)
    assert 4 * first["bytes_up"] == 3 * second["bytes_up"]
    assert first["bytes_down"] == second["bytes_down"]


def test_second_copies_count_once() -> None:
    twice = RandomFaults(seed=0, duplicate_reply=1.0)
    strategies = [Compressed(FedAvg(), "identity()") for _ in range(2)]
    for strategy, faults in zip(strategies, (None, twice), strict=True):
        grid = LoopbackGrid(quadratic_app(), NUM_NODES, faults=faults)
        train(strategy, grid=grid, num_rounds=NUM_ROUNDS)
    clean, repeated = (s.ledger.bytes_of(direction="up") for s in strategies)
    assert clean == repeated > 0


def test_the_result_holds_the_bytes_of_each_round() -> None:
    strategy = Compressed(FedAvg(), "topk(fraction=0.1)")
    result = train(strategy, num_rounds=NUM_ROUNDS)
    for row in strategy.ledger.rounds():
        metrics = result.train_metrics_clientapp[int(row["round"])]
        for name in ("bytes_up", "bytes_down", "bytes_up_dense", "num_replies"):
            assert metrics[name] == row[name] > 0
        assert metrics["encode_seconds"] == row["encode_seconds"] > 0.0
        assert metrics["decode_seconds"] == row["decode_seconds"] > 0.0


def test_every_training_has_a_ledger_of_its_own() -> None:
    strategy = Compressed(FedAvg(), "identity()")
    assert strategy.ledger.entries == []
    train(strategy, num_rounds=3)
    first = strategy.ledger
    train(strategy, num_rounds=1)
    assert [r["round"] for r in first.rounds()] == [1, 2, 3]
    assert [r["round"] for r in strategy.ledger.rounds()] == [1]


def test_sums_by_round_direction_and_purpose() -> None:
    rng = random.Random(0)
    ledger = Ledger()
    for round_ in (1, 2):
        for client in ("a", "b"):
            for way in ("up", "down"):
                for purpose in ("train", "evaluate"):
                    size = rng.randrange(1000)
                    ledger.add(Entry(round_, client, way, purpose, size, 4000))
    sizes = [e.size_bytes for e in ledger.entries]
    assert ledger.bytes_of() == sum(sizes)
    assert ledger.bytes_of(2) == sum(sizes[8:])
    assert ledger.bytes_of(1, "up", "train") == sizes[0] + sizes[4]
    assert ledger.round(1)["bytes_down_evaluate"] == sizes[3] + sizes[7]
    assert ledger.round(3)["bytes_up"] == 0

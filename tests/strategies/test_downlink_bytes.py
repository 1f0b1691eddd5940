"""What compressed models cost, and that it is counted."""

from __future__ import annotations

import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg

from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.downlinks import DOWNLINK, UPLINK, run, watched
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    initial_arrays,
    quadratic_app,
    train,
)
from tests.strategies.reference_oracle import broadcast_in, downlink_of
from tests.strategies.test_ledger import CountingGrid


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_ledger_counts_the_bytes_of_messages(fraction: float) -> None:
    inner = FedAvg(fraction_train=fraction, fraction_evaluate=0.5)
    strategy = Compressed(inner, UPLINK, downlink=DOWNLINK)
    _, _, grid = run(strategy, 6)
    assert isinstance(grid, CountingGrid)
    ledger = strategy.ledger
    for row in ledger.rounds():
        number = int(row["round"])
        assert row["bytes_down"] == grid.counted["down", "train", number] > 0
        evaluated = grid.counted["down", "evaluate", number]
        assert row["bytes_down_evaluate"] == evaluated > 0
        num_asked = NUM_NODES * fraction + NUM_NODES // 2
        assert row["bytes_down_dense"] == num_asked * 4 * (DIM + 3 + 1)
    assert ledger.bytes_of(direction="down") == grid.array_bytes_down


def test_who_has_the_model_from_evaluating_it_is_sent_nothing_to_train() -> None:
    grid, _ = watched()
    sizes: list[tuple[str, int, int]] = []
    saw = grid.on_request

    def note(message: Message) -> None:
        assert saw is not None
        saw(message)
        sent = broadcast_in(message)
        if sent is not None:
            size = len(sent.step) + sum(len(k.data) for k in sent.links)
            sizes.append((message.metadata.message_type, sent.is_whole, size))

    grid.on_request = note
    strategy = Compressed(FedAvg(), UPLINK, downlink=DOWNLINK)
    arrays = initial_arrays(buffers=True)
    train(strategy, grid=grid, arrays=arrays, num_rounds=5)
    trains = [s for s in sizes if s[0] == "train"]
    evaluates = [s for s in sizes if s[0] == "evaluate"]
    assert [s[1:] for s in trains] == [(True, 0)] * 4 + [(False, 0)] * 16
    assert all(not whole and size > 0 for _, whole, size in evaluates)
    assert len(evaluates) == 20


def test_catching_up_costs_at_most_what_is_sent_anyway() -> None:
    """A tenth of twenty clients: moves that absent ones must be sent are seldom."""
    inner = FedAvg(fraction_train=0.1, fraction_evaluate=0.0)
    strategy = Compressed(inner, UPLINK, downlink="*: uniform(bits=3, block=256)")
    catching_up = own = 0
    grid, oracle = watched(20)
    saw = grid.on_request

    def note(message: Message) -> None:
        nonlocal catching_up, own
        assert saw is not None
        saw(message)
        sent = broadcast_in(message)
        if sent is None or sent.is_whole:
            return
        sizes = [len(k.data) for k in sent.links] + [len(sent.step)] * bool(sent.step)
        own += sizes[-1]
        catching_up += sum(sizes[:-1])

    grid.on_request = note
    train(strategy, grid=grid, arrays=initial_arrays(buffers=True), num_rounds=100)
    assert 20 <= oracle.counts["whole"] <= 40
    assert 0.4 * own < catching_up <= own


def test_after_a_long_absence_the_whole_model_is_smaller() -> None:
    """Nobody is sent more than the model: the ring holds no more than that."""
    largest = 0
    strategy = Compressed(
        FedAvg(fraction_train=0.25, fraction_evaluate=0.0),
        UPLINK,
        downlink="*: uniform(bits=8, block=32)",
    )
    grid, oracle = watched(8)
    saw = grid.on_request

    def note(message: Message) -> None:
        nonlocal largest
        assert saw is not None
        saw(message)
        sent = broadcast_in(message)
        if sent is not None:
            largest = max(largest, sum(len(k.data) for k in sent.links))

    grid.on_request = note
    train(strategy, grid=grid, arrays=initial_arrays(buffers=True), num_rounds=40)
    assert oracle.counts["whole"] > 8
    assert 0 < largest <= 4 * DIM
    oracle.check_server(downlink_of(strategy))


def test_a_payload_larger_than_the_model_is_the_model_itself() -> None:
    """So is identity() as a part of a schedule: bit for bit what is sent without."""
    text = "steps(identity(), at=4, then=ecsq(nmse=0.1))"
    strategy = Compressed(FedAvg(), UPLINK, downlink=text)
    _, oracle, _ = run(strategy, 6)
    plain = Compressed(FedAvg(), UPLINK)
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    given: list[bytes] = []

    def note(message: Message) -> None:
        if message.metadata.message_type == "train" and message.content.array_records:
            given.append(message.content["arrays"]["w"].numpy().tobytes())

    grid.on_request = note
    train(plain, grid=grid, arrays=initial_arrays(buffers=True), num_rounds=6)
    ours = [g["w"].tobytes() for _, g in oracle.trained]
    assert ours[:12] == given[:12]
    assert ours[12:] != given[12:]
    assert oracle.counts["whole"] == 4 * 3  # three models, once to each

"""Compressed models that are damaged on their way."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, Message

from fl_lowrank.envelope import REQUEST_KEY, STYPE
from strategies import Compressed
from tests.strategies.downlinks import DOWNLINK, UPLINK, inner, watched
from tests.strategies.federation import NUM_NODES, initial_arrays, train
from tests.strategies.reference_oracle import broadcast_in


@pytest.mark.parametrize("what", ["head", "payload", "cut", "empty"])
def test_damage_on_the_way_costs_one_turn(what: str) -> None:
    grid, oracle = watched()
    saw = grid.on_request
    done: list[int] = []

    def spoil(message: Message) -> None:
        sent = broadcast_in(message)
        hit = sent is not None and not sent.is_whole and not done
        if not hit:
            assert saw is not None
            saw(message)
            return
        done.append(message.metadata.dst_node_id)
        record = message.content["arrays"]
        data = bytearray(record[REQUEST_KEY].data)
        if what in ("head", "payload"):
            data[{"head": 5, "payload": -20}[what]] ^= 1
        else:
            data = data[: {"cut": -3, "empty": 0}[what]]
        record[REQUEST_KEY] = Array("uint8", (len(data),), STYPE, bytes(data))

    grid.on_request = spoil
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    train(strategy, grid=grid, arrays=initial_arrays(buffers=True), num_rounds=5)
    assert len(done) == 1
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4, 3, 4, 4, 4]
    assert oracle.counts["whole"] == NUM_NODES + 1
    assert oracle.check_clients() == NUM_NODES


def test_a_whole_model_that_is_not_the_announced_one_is_refused() -> None:
    grid, oracle = watched()
    saw = grid.on_request
    done: list[int] = []

    def spoil(message: Message) -> None:
        assert saw is not None
        if broadcast_in(message) is None or done:
            saw(message)
            return
        done.append(message.metadata.dst_node_id)
        record = message.content["arrays"]
        record["w"] = Array(record["w"].numpy() + np.float32(1e-30))

    grid.on_request = spoil
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    train(strategy, grid=grid, arrays=initial_arrays(buffers=True), num_rounds=3)
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [3, 4, 4]
    assert oracle.counts["whole"] == NUM_NODES
    assert oracle.check_clients() == NUM_NODES

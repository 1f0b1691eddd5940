"""Compressed models and a server that stops and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAdam, Strategy

from clients import CompressionMod
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.downlinks import (
    CHAINED,
    DOWNLINK,
    UPLINK,
    WHOLE,
    inner,
    play,
    watched,
)
from tests.strategies.federation import LR, NUM_NODES, quadratic_app, train
from tests.strategies.reference_oracle import downlink_of
from tests.strategies.test_checkpoint import Killed, killing


def adam() -> FedAdam:
    return FedAdam(eta=0.3, fraction_evaluate=0.0)


INNERS = {"fedavg": lambda: inner(0.5), "fedadam": adam}


@pytest.mark.parametrize("name", INNERS)
def test_resumed_is_as_if_never_interrupted(name: str, tmp_path: Path) -> None:
    def make(path: Path | None) -> Compressed:
        return Compressed(
            INNERS[name](), UPLINK, downlink="powersgd(rank=1)", checkpoint=path
        )

    path, arrays = tmp_path / "c", matrix_arrays()
    whole = make(None)
    wanted = train(whole, quadratic_app(), num_rounds=8, arrays=arrays).arrays
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    with pytest.raises(Killed):
        train(
            make(path), grid=grid, num_rounds=8, evaluate_fn=killing(3), arrays=arrays
        )
    resumed = make(path)
    found = train(resumed, grid=grid, num_rounds=8, arrays=arrays, resume=path).arrays
    assert np.array_equal(found["w"].numpy(), wanted["w"].numpy())
    for key in ("bytes_down", "bytes_up"):
        ours = [r[key] for r in resumed.ledger.rounds()]
        assert ours == [r[key] for r in whole.ledger.rounds()]
    mine, theirs = downlink_of(resumed), downlink_of(whole)
    assert mine.chain is not None
    assert theirs.chain is not None
    assert (mine.chain.end, mine.held) == (theirs.chain.end, theirs.held)
    assert mine.state


def matrix_arrays() -> ArrayRecord:
    """Forty of the quadratics' models in one, for low rank."""
    return ArrayRecord({"w": Array(np.zeros((40, 30), np.float32))})


def test_after_an_older_checkpoint_clients_begin_where_it_is(tmp_path: Path) -> None:
    """They hold references that the server has never had."""
    path = tmp_path / "c"
    grid, oracle = watched()

    def make(strategy: Strategy) -> Compressed:
        return Compressed(strategy, UPLINK, downlink=DOWNLINK, checkpoint=path)

    play(grid, make(inner()), 3)
    old = path.read_bytes()
    play(grid, make(inner()), 6, resume=path)
    path.write_bytes(old)
    # Another server step, so that the models are other ones than before.
    grid.client_app = quadratic_app([CompressionMod(), oracle.mod, faster])
    strategy = make(inner())
    rounds = play(grid, strategy, 8, resume=path)
    assert rounds == [CHAINED, WHOLE, CHAINED, CHAINED, CHAINED]
    replies = {r["round"]: r["num_replies"] for r in strategy.ledger.rounds()}
    assert replies == {1: 4, 2: 4, 3: 4, 4: 0, 5: 4, 6: 4, 7: 4, 8: 4}
    assert oracle.check_clients() == NUM_NODES


def faster(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    for config in message.content.config_records.values():
        config["lr"] = 3 * LR
    return call_next(message, context)

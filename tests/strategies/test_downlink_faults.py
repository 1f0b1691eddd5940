"""Compressed models on a network, and for clients, that fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from torch import Tensor

import clients.reference
import fl_lowrank.reference
import strategies.directory
import strategies.downlink
from clients import FileHome
from clients.turns import Memory
from fl_lowrank.broadcast import Link
from fl_lowrank.model import Layout
from fl_lowrank.reference import moved
from simulations.loopback import LOST, Fault, ScriptedFaults, late
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
from tests.strategies.federation import NUM_NODES, partition_of, quadratic_app
from tests.strategies.memory_law.scene import bad_weather
from tests.strategies.reference_oracle import downlink_of

Model = Mapping[str, Tensor]


@pytest.fixture(autouse=True)
def _ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # No time passes on the loopback grid, so ask silent nodes again at once.
    monkeypatch.setattr(strategies.directory, "RETRY_SECONDS", -1.0)
    # So few nodes would move the reference in every round.
    monkeypatch.setattr(strategies.downlink, "CATCH_UP_SHARE", 0.4)


# Exchange 1 introduces the nodes; then each round is one exchange.


def test_a_lost_reply_costs_bytes_alone() -> None:
    """The client is further on than the server thinks, and joins in the middle."""
    grid, oracle = watched(faults=ScriptedFaults({(3, 0): Fault(reply=LOST)}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    assert play(grid, strategy, 5) == [WHOLE, *[CHAINED] * 4]
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4, 3, 4, 4, 4]
    sent = {
        e.client: e.size_bytes
        for e in strategy.ledger.entries
        if (e.round, e.direction) == (3, "down")
    }
    assert sent.pop("partition-0") > max(sent.values())  # one move more
    assert len(set(sent.values())) == 1
    assert oracle.check_clients() == NUM_NODES


def test_a_lost_request_is_made_up_for() -> None:
    grid, oracle = watched(faults=ScriptedFaults({(3, 0): Fault(request=LOST)}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    assert play(grid, strategy, 4) == [WHOLE, CHAINED[1:], CHAINED, CHAINED]
    assert oracle.check_clients() == NUM_NODES


def test_a_late_request_does_not_turn_back() -> None:
    """The whole model of round 1 arrives in round 3, when there are newer ones."""
    grid, oracle = watched(faults=ScriptedFaults({(2, 0): Fault(request=(0, 2))}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    rounds = play(grid, strategy, 4)
    assert sorted(rounds[2]) == sorted([*CHAINED, (0, True)])
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4, 4, 4, 4]
    assert oracle.check_clients() == NUM_NODES
    assert all(not whole for _, whole in rounds[3])


def test_a_client_without_its_memory_asks_for_the_whole_model() -> None:
    grid, oracle = watched(faults=ScriptedFaults({(3, 2): Fault(lose_memory=True)}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    rounds = play(grid, strategy, 5)
    asked = [(node, node == 2) for node in range(NUM_NODES)]
    assert rounds == [WHOLE, CHAINED, asked, CHAINED, CHAINED]
    # One turn is lost, and no more.
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4, 3, 4, 4, 4]
    assert oracle.check_clients() == NUM_NODES


def test_a_crash_before_the_reference_is_saved_is_noticed() -> None:
    grid, oracle = watched(faults=ScriptedFaults({(3, 1): Fault(crash="after_reply")}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    rounds = play(grid, strategy, 5)
    asked = [(node, node == 1) for node in range(NUM_NODES)]
    assert rounds == [WHOLE, CHAINED, CHAINED, asked, CHAINED]
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4, 4, 3, 4, 4]
    oracle.check_clients()


def test_late_replies_count_for_nothing() -> None:
    grid, oracle = watched(faults=ScriptedFaults({(3, 3): Fault(reply=late(1))}))
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    assert play(grid, strategy, 5) == [WHOLE, *[CHAINED] * 4]
    assert oracle.check_clients() == NUM_NODES


@pytest.mark.parametrize("where", ["context", "file"])
def test_references_agree_on_a_bad_day(where: str, tmp_path: Path) -> None:
    home = FileHome(tmp_path, durable=False) if where == "file" else None
    grid, oracle = watched(faults=bad_weather(5, lose_memory=0.05), home=home)
    fid = []

    def load(context: Context) -> Memory | None:
        assert home is not None
        with home.open(context, fid[0], "reference") as slot:
            return slot.memory

    strategy = Compressed(inner(0.5), UPLINK, downlink=DOWNLINK, seed=1)
    play(grid, strategy, 40)
    assert strategy._talk is not None
    fid.append(strategy._talk.book.fid)
    assert oracle.check_clients(load if home else None) == NUM_NODES
    assert oracle.counts["links"] > 20
    assert oracle.counts["steps"] > 10
    assert oracle.counts["whole"] > NUM_NODES
    if home:
        files = sorted(p.name for p in tmp_path.rglob("*.full"))
        assert len([f for f in files if "-reference" in f]) == NUM_NODES
    else:
        # Memories are lost with the Context alone.
        assert oracle.counts["whole"] > 2 * NUM_NODES


# --- the check is needed --------------------------------------------------------------


def believing(
    reference: Model, held: int, links: Sequence[Link], end: int, layout: Layout
) -> Model:
    """Follow whatever comes, from wherever one is."""
    for link in links:
        reference = moved(reference, link.data, layout)
    return reference


def test_without_the_check_references_drift_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, _ = watched(faults=ScriptedFaults({(3, 0): Fault(reply=LOST)}))
    monkeypatch.setattr(clients.reference, "followed", believing)
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    # The oracle's complaint comes out of the client as an error.
    play(grid, strategy, 4)
    assert [r["num_replies"] for r in strategy.ledger.rounds()][:3] == [4, 3, 3]


def test_a_machine_that_computes_otherwise_is_sent_whole_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused three times in all, and not every second time for ever."""
    grid, _ = watched()
    app = quadratic_app()

    def call(message: Message, context: Context) -> Message:
        def otherwise(*arguments: Any) -> dict[str, Tensor]:
            out = moved(*arguments)
            if partition_of(context) == 1:
                out["w"] = torch.nextafter(out["w"], torch.tensor(9.0))
            return out

        with monkeypatch.context() as patch:
            patch.setattr(fl_lowrank.reference, "moved", otherwise)
            return app(message, context)

    grid.client_app = call
    strategy = Compressed(inner(), UPLINK, downlink=DOWNLINK)
    play(grid, strategy, 12)
    replies = [r["num_replies"] for r in strategy.ledger.rounds()]
    assert replies == [4, 3, 4, 3, 4, 3, 4, 4, 4, 4, 4, 4]
    assert downlink_of(strategy).refusals == {"partition-1": 3}

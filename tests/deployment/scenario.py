"""What the tests put a federation through, and what must be so afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simulations.runner.processes import marked_processes
from strategies.ledger import Ledger
from tests.deployment import law
from tests.deployment.federation import Federation, make_app
from tests.deployment.traffic import Traffic, check_traffic

NUM_NODES = 3
CONFIG = {
    "train-samples": 300,
    "num-rounds": 3,
    "local-epochs": 1,
    "fraction-evaluate": 0.0,
    "evaluate-every": 3,
}


def two_nodes_die(
    federation: Federation, folder: Path, config: Mapping[str, Any]
) -> Traffic:
    """Kill two of three nodes in round 2, of which one comes back.

    That one has saved its turn, which will never arrive; the other one is killed before
    it could save anything. The third one's reply waits until the first is back.

    Returns
    -------
    Traffic
        Of the third node since round 1.
    """
    app = make_app(folder / "app")
    with federation:
        returning, dying, staying = federation.nodes
        federation.start_nodes()
        federation.start_run(app, CONFIG | config)
        federation.wait_for_round(1)
        before = staying.relay.traffic()
        returning.stop_at("saved")
        dying.stop_at("trained")
        staying.stop_at("trained")
        returning.wait_until_at("saved")
        returning.kill(for_good=False)
        dying.wait_until_at("trained")
        dying.kill(for_good=True)
        returning.wait_until_connected(times=2)
        staying.wait_until_at("trained")
        staying.go_on()
        status = federation.wait_for_end()
        traffic = staying.relay.traffic().since(before)
    assert not marked_processes(federation.link.mark)
    assert status == "finished:completed", federation.said()
    return traffic


def check_what_is_left(federation: Federation, traffic: Traffic) -> None:
    """Check who took part, memories, and the bytes of the node that stayed."""
    returning, dying, staying = federation.nodes
    rounds = federation.results.read_rounds()
    assert [entry["num_replies"] for entry in rounds] == [0, 3, 1, 2], federation.said()
    left = law.Left(federation)
    law.check(left)
    trained = {key: [t.round for t in turns] for key, turns in left.turns.items()}
    assert trained == {returning.key: [1, 2, 3], dying.key: [1], staying.key: [1, 2, 3]}
    first, lost, third = left.turns[returning.key]
    assert lost not in left.applied[returning.key]
    # It went on from its file: with what was settled before, and nothing else.
    assert lost.reply.base == third.reply.base == first.reply.turn
    assert not third.reply.error_dropped
    assert left.state["book"]["num_resets"] == 0
    # The law is one that could be broken: by the turn that did not arrive, say.
    left.applied[returning.key].append(lost)
    with pytest.raises(AssertionError, match=f"the memory of {returning.key} is off"):
        law.check(left)
    ledger = Ledger.resumed(left.state["ledger"])
    num_arrays = len(left.state["progress"]["arrays"])
    print(
        check_traffic(
            traffic, ledger, staying.key, after_round=1, num_arrays=num_arrays
        )
    )

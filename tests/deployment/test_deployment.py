"""Real processes on the loopback: a SuperNode dies and comes back, another one dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.runner.processes import marked_processes
from tests.deployment import law
from tests.deployment.federation import Federation, make_app

CONFIG = {
    "train-samples": 300,
    "num-rounds": 3,
    "local-epochs": 1,
    "fraction-evaluate": 0.0,
    "evaluate-every": 3,
}


@pytest.mark.timeout(1200)
def test_nodes_die_and_the_memory_law_holds(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    with Federation(tmp_path, num_nodes=3) as federation:
        returning, dying, staying = federation.nodes
        federation.start_nodes()
        federation.start_run(app, CONFIG)
        federation.wait_for_round(1)
        for node, place in zip(
            federation.nodes, ("saved", "trained", "trained"), strict=True
        ):
            node.stop_at(place)
        # Its turn of this round is saved, but will never arrive.
        returning.wait_until_at("saved")
        returning.kill(for_good=False)
        dying.wait_until_at("trained")
        dying.kill(for_good=True)
        returning.wait_until_connected(times=2)
        staying.wait_until_at("trained")
        staying.go_on()
        status = federation.wait_for_end()
    assert not marked_processes(federation.link.mark)
    assert status == "finished:completed", federation.said()

    rounds = federation.results.read_rounds()
    assert [entry["num_replies"] for entry in rounds] == [0, 3, 1, 2], federation.said()
    assert len(set(returning.ids())) == 2
    left = law.Left(federation)
    law.check(left)
    trained = {key: [t.round for t in turns] for key, turns in left.turns.items()}
    assert trained == {returning.key: [1, 2, 3], dying.key: [1], staying.key: [1, 2, 3]}
    first, lost, third = left.turns[returning.key]
    assert lost not in left.applied[returning.key]
    # It went on from its file: with what was settled before, and nothing else.
    assert lost.reply.base == third.reply.base == first.reply.turn
    assert not third.reply.error_dropped

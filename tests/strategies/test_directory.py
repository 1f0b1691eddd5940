"""Client keys: names that last longer than node ids."""

from __future__ import annotations

import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg

from fl_lowrank.errors import ProtocolError
from simulations.loopback import EventKind, Fault, LoopbackGrid, ScriptedFaults
from strategies import Compressed
from strategies import directory as directories
from strategies.directory import Directory
from tests.strategies.federation import NUM_NODES, logged, quadratic_app, train

FID = bytes(16)


def hellos(grid: LoopbackGrid) -> list[int]:
    kinds = (EventKind.REQUEST_DELIVERED, EventKind.UNREACHABLE)
    return [e.node for e in grid.events if e.kind in kinds]


def grid_of(num_nodes: int, **options: object) -> LoopbackGrid:
    return LoopbackGrid(quadratic_app(), num_nodes, **options)


def test_nodes_are_asked_once_and_ordered_by_their_key() -> None:
    grid = grid_of(12)
    directory = Directory()
    for _ in range(3):
        assert directory.refresh(grid, FID, 10.0) == grid.node_ids
    assert sorted(hellos(grid)) == list(range(12))
    assert [directory.key(n) for n in grid.node_ids[:3]] == [
        "partition-0",
        "partition-1",
        "partition-2",
    ]
    assert grid.node_ids != sorted(grid.node_ids)


def test_a_node_without_a_partition_is_known_by_its_id() -> None:
    grid = grid_of(1, node_configs=[{}])
    del grid.contexts[grid.node_ids[0]].node_config["partition-id"]
    directory = Directory()
    directory.refresh(grid, FID, 10.0)
    assert directory.key(grid.node_ids[0]) == f"node-{grid.node_ids[0]}"


def test_a_node_that_joins_later_introduces_itself() -> None:
    grid = grid_of(3)
    late = grid.node_ids[1]
    grid.offline.add(late)
    directory = Directory()
    assert directory.refresh(grid, FID, 10.0) == [grid.node_ids[0], grid.node_ids[2]]
    grid.offline.clear()
    assert directory.refresh(grid, FID, 10.0) == grid.node_ids
    assert hellos(grid).count(1) == 1


def test_a_restarted_node_keeps_its_key_under_a_new_id() -> None:
    """An unauthenticated SuperNode gets a new node id at each start."""
    first = grid_of(3, seed=1)
    directory = Directory()
    directory.refresh(first, FID, 10.0)
    second = grid_of(3, node_ids=[*first.node_ids[:2], 12345])
    assert directory.refresh(second, FID, 10.0) == second.node_ids
    assert directory.key(12345) == "partition-2"
    assert hellos(second) == [2]
    # The old id, should it come back, is nobody until it is asked again.
    assert directory.key(first.node_ids[2]) == f"node-{first.node_ids[2]}"


def test_a_node_that_is_back_before_its_death_was_noticed_keeps_its_key() -> None:
    """A killed SuperNode counts as connected for a minute."""
    grid = grid_of(4, node_configs=[{}, {}, {}, {"partition-id": 0}])
    back = grid.node_ids[3]  # first it is node 0
    grid.offline.add(back)
    directory = Directory()
    directory.refresh(grid, FID, 10.0)
    grid.offline.clear()
    grid.faults = ScriptedFaults({(3, 0): Fault(reply=())})  # of the second asking
    nodes = directory.refresh(grid, FID, 10.0)
    assert nodes == [back, *grid.node_ids[1:3]]
    assert directory.key(back) == "partition-0"
    assert directory.refresh(grid, FID, 10.0) == nodes
    assert grid.exchange == 3  # the dead one is not asked so soon again


def test_two_nodes_with_one_key_are_kept_apart() -> None:
    grid = grid_of(3, node_configs=[{}, {}, {"partition-id": 0}])
    directory = Directory()
    nodes = directory.refresh(grid, FID, 10.0)
    assert sorted(nodes) == sorted(grid.node_ids)
    keys = {directory.key(n) for n in nodes}
    assert len(keys) == 3
    assert {"partition-0", "partition-1"} < keys


def test_nodes_that_do_not_answer_are_asked_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = ScriptedFaults({(1, 1): Fault(reply=()), (2, 1): Fault(offline=True)})
    grid = grid_of(3, faults=faults)
    directory = Directory()
    others = [grid.node_ids[0], grid.node_ids[2]]
    assert directory.refresh(grid, FID, 10.0) == others
    assert directory.refresh(grid, FID, 10.0) == others
    assert grid.exchange == 1  # not asked so soon
    monkeypatch.setattr(directories, "RETRY_SECONDS", 0.0)
    assert directory.refresh(grid, FID, 10.0) == others
    assert directory.refresh(grid, FID, 10.0) == grid.node_ids
    assert grid.exchange == 3


def test_a_node_that_never_answers_costs_ever_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each asking of it lasts as long as it may; in between the others train."""
    now = 0.0
    waits: list[float] = []
    faults = ScriptedFaults({(i, 1): Fault(reply=()) for i in range(1, 99)})
    grid = grid_of(3, faults=faults)
    original = grid.send_and_receive

    def send_and_receive(messages: object, *, timeout: float) -> object:
        nonlocal now
        now += timeout
        waits.append(timeout)
        return original(messages, timeout=timeout)

    monkeypatch.setattr(grid, "send_and_receive", send_and_receive)
    monkeypatch.setattr(directories.time, "monotonic", lambda: now)
    directory = Directory()
    others = [grid.node_ids[0], grid.node_ids[2]]
    for _ in range(3600):  # of an hour besides what it waits
        for _ in range(2):  # as Flower's sampling does
            assert directory.refresh(grid, FID, 150.0) == others
        now += 1.0
    assert waits[:3] == [150.0, 30.0, 30.0]
    assert len(waits) <= 9


def test_no_introduction_at_all_is_an_error() -> None:
    grid = grid_of(2)
    grid.client_app = quadratic_app([])
    with pytest.raises(ProtocolError, match="none of 2 nodes introduced itself"):
        Directory().refresh(grid, FID, 10.0)


@pytest.mark.parametrize("away", ["silent", "unreachable"])
def test_a_dead_node_may_be_the_first_to_be_listed(
    away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower lists a killed SuperNode for a minute, and one that still starts."""
    now = [0.0]
    lost = {(1, 0): Fault(reply=())} if away == "silent" else {}
    grid = grid_of(3, faults=ScriptedFaults(lost))
    ids = list(grid.node_ids)
    if away == "unreachable":
        grid.offline.add(ids[0])
    monkeypatch.setattr(directories.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(grid, "get_node_ids", lambda: ids[:1])
    directory = Directory()
    with logged() as lines:
        assert directory.refresh(grid, FID, 10.0) == []
        assert directory.refresh(grid, FID, 10.0) == []  # it is not asked again yet
    (line,) = lines
    assert "none of 1 nodes introduced itself (no answer within 10 s)" in line
    monkeypatch.setattr(grid, "get_node_ids", lambda: ids)
    assert directory.refresh(grid, FID, 10.0) == ids[1:]
    grid.offline.clear()
    now[0] += 40.0
    assert directory.refresh(grid, FID, 10.0) == ids


def test_who_claims_a_key_gets_it_when_its_holder_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(3, node_configs=[{}, {}, {"partition-id": 0}])
    directory = Directory()
    directory.refresh(grid, FID, 10.0)
    other = grid.node_ids[1]
    holder, rival = sorted({*grid.node_ids} - {other}, key=directory.key)
    assert directory.key(holder) == "partition-0"
    assert directory.key(rival) == f"partition-0@{rival}"
    grid.offline.add(holder)
    assert directory.refresh(grid, FID, 10.0) == [rival, other]
    assert directory.key(rival) == "partition-0"
    # The other one is the rival when it is back.
    grid.offline.clear()
    monkeypatch.setattr(directories, "RETRY_SECONDS", 0.0)
    assert len(directory.refresh(grid, FID, 10.0)) == 3
    assert directory.key(holder) == f"partition-0@{holder}"


def test_a_stranger_alone_does_not_end_a_training() -> None:
    """Who was there before may come back, and is waited for."""
    faults = ScriptedFaults({(i, 2): Fault(reply=()) for i in range(1, 9)})
    grid = grid_of(3, faults=faults)
    directory = Directory()
    assert directory.refresh(grid, FID, 10.0) == grid.node_ids[:2]
    grid.offline.update(grid.node_ids[:2])
    assert directory.refresh(grid, FID, 10.0) == []
    grid.offline.clear()
    assert directory.refresh(grid, FID, 10.0) == grid.node_ids[:2]


def test_no_nodes_is_not_an_error_yet() -> None:
    grid = grid_of(2)
    grid.offline.update(grid.node_ids)
    assert Directory().refresh(grid, FID, 10.0) == []


def test_answers_belong_to_the_node_that_was_asked() -> None:
    """Flower's errors come from the SuperLink, whatever node they are about."""
    grid = grid_of(2)

    def claim(reply: Message) -> None:
        reply.metadata.__dict__["_src_node_id"] = grid.node_ids[0]

    grid.on_reply = claim
    directory = Directory()
    assert directory.refresh(grid, FID, 10.0) == grid.node_ids
    assert directory.key(grid.node_ids[1]) == "partition-1"


def test_a_restart_during_training_goes_on_with_the_same_client() -> None:
    """The client's error memory is gone, which error feedback survives."""
    grid = grid_of(NUM_NODES)
    strategy = Compressed(FedAvg(), "topk(fraction=0.5)")
    old = grid.node_ids[2]

    class Restarting(LoopbackGrid):
        def get_node_ids(self) -> list[int]:
            if self.exchange == 4 and old in self.contexts:  # before round 3
                context = self.contexts.pop(old)
                context.node_id = 999
                self.contexts[999] = context
                self.node_ids[2] = 999
                self._index[999] = self._index.pop(old)
                self.forget(999)
            return super().get_node_ids()

    grid.__class__ = Restarting
    train(strategy, grid=grid, num_rounds=4)
    clients = {e.client for e in strategy.ledger.entries}
    assert clients == {f"partition-{i}" for i in range(NUM_NODES)}
    assert [r["num_replies"] for r in strategy.ledger.rounds()] == [4] * 4
    assert [r["dropped"] for r in strategy.ledger.rounds()] == [0] * 4

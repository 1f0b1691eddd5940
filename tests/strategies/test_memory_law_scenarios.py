"""The protocol in small scenes, one fault each; the oracle watches all of them too.

Three nodes train without evaluation unless a test says otherwise; the fault befalls
node 0, mostly in round 2.
"""

from __future__ import annotations

import logging
import random
import time
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Message

import clients.turns
import strategies.turns
from simulations.loopback import (
    DUPLICATED,
    LOST,
    EventKind,
    Fault,
    late,
)
from tests.strategies.memory_law.actors import DAMAGES, damage
from tests.strategies.memory_law.scene import Scene, Stage, set_up
from tests.strategies.memory_law.script import COPY_NOT_SAVED, act, name

FEEDBACKS = ["ef", "ef21"]
BOTH = pytest.mark.parametrize("feedback", FEEDBACKS)


def test_lost_reply_leaves_memory_of_ef21_unchanged() -> None:
    acted = act("ef21", {(2, 0): Fault(reply=LOST)})
    _, lost, then, _, _ = acted.turns(0)
    assert lost.saved
    assert not lost.applied
    assert then.applied
    np.testing.assert_array_equal(acted.vector(3), acted.vector(2))
    assert acted.memory(3).base == acted.memory(2).base == then.base == lost.base
    assert acted.resets[-1] == 0


def test_lost_reply_leaves_update_in_memory_of_ef() -> None:
    acted = act("ef", {(2, 0): Fault(reply=LOST)})
    first, lost, then, _, _ = acted.turns(0)
    error = first.update - first.sent
    np.testing.assert_allclose(acted.vector(2), error + lost.update, atol=1e-5)
    expected = error + lost.update + then.update
    np.testing.assert_allclose(acted.vector(3), expected, atol=1e-5)
    assert not lost.applied
    assert then.applied


@BOTH
def test_lost_request_changes_nothing(feedback: str) -> None:
    acted = act(feedback, {(2, 0): Fault(request=LOST)})
    assert acted.memory(2).pending == acted.memory(1).pending
    assert acted.memory(2).seen == acted.memory(1).seen
    assert all(t.applied for t in acted.turns(0))
    assert len(acted.turns(0)) == 4


@BOTH
def test_duplicated_request_is_trained_once(feedback: str) -> None:
    acted = act(feedback, {(2, 0): Fault(request=DUPLICATED)})
    assert acted.stage.clients.trained.count((name(0), 2)) == 1
    assert acted.stage.oracle.events["refused"] == 1
    assert all(t.applied for t in acted.turns(0))


@BOTH
def test_duplicated_reply_is_applied_once(feedback: str) -> None:
    acted = act(
        feedback, {(2, 0): Fault(reply=DUPLICATED), (3, 0): Fault(reply=(0, 1))}
    )
    assert acted.stage.oracle.events["applied"] == 3 * 5
    assert acted.resets[-1] == 0


@BOTH
def test_late_reply_is_dropped_after_the_next_request(feedback: str) -> None:
    acted = act(feedback, {(2, 0): Fault(reply=late(1))})
    assert [t.applied for t in acted.turns(0)] == [True, False, True, True, True]
    assert acted.stage.grid.counts()[EventKind.REPLY_DELIVERED] == 3 * (1 + 5)


@BOTH
def test_late_request_is_refused_after_the_next_one(feedback: str) -> None:
    # It arrives with the request of round 3, after that of the evaluation before.
    acted = act(feedback, {(2, 0): Fault(request=late(2))}, fraction_evaluate=1.0)
    assert acted.stage.oracle.events["refused"] == 1
    trained = acted.stage.clients.trained
    assert [r for client, r in trained if client == name(0)] == [1, 3, 4, 5]


@BOTH
def test_crash_before_save_is_as_if_nothing_was(feedback: str) -> None:
    acted = act(feedback, {(2, 0): Fault(crash="before_save")})
    assert acted.memory(2).pending == acted.memory(1).pending
    assert [t.applied for t in acted.turns(0)] == [True, False, True, True, True]
    assert acted.resets[-1] == 0


def test_crash_after_reply_begins_a_new_epoch_in_ef21() -> None:
    acted = act("ef21", {(2, 0): Fault(crash="after_reply")})
    _, unsaved, stranger, again, last = acted.turns(0)
    assert unsaved.applied
    assert not unsaved.saved
    # The request of round 3 names a turn that the client does not know.
    assert stranger.base == 0
    assert not stranger.applied
    assert acted.resets == [0, 0, 0, 1, 1, 1]
    assert acted.applied[3] == {}
    # All begin anew, and training goes on.
    assert again.base == 0
    assert again.applied
    assert last.base == again.number
    assert set(acted.applied[4]) == {name(i) for i in range(3)}
    assert all(acted.memory(4, i).base == 0 for i in range(3))


def test_crash_after_reply_costs_ef_its_error_once() -> None:
    acted = act("ef", {(2, 0): Fault(crash="after_reply"), (3, 0): Fault(reply=LOST)})
    _, unsaved, after, last, _ = acted.turns(0)
    assert unsaved.applied
    assert not unsaved.saved
    np.testing.assert_allclose(acted.vector(3), after.update, atol=1e-5)
    # What it has gathered since outlives the next loss.
    np.testing.assert_allclose(acted.vector(4), after.update + last.update, atol=1e-5)
    assert acted.stage.oracle.books[name(0)].causes == ["not saved", "estranged"]
    assert acted.resets[-1] == 0


@BOTH
def test_two_turns_of_one_request_are_told_apart(feedback: str) -> None:
    acted = act(feedback, {(2, 0): COPY_NOT_SAVED})
    _, first, second, *_ = acted.turns(0)
    assert first.ticket == second.ticket
    assert first.number != second.number
    assert sorted((first.saved, second.saved)) == [False, True]
    assert first.applied != second.applied
    kept = first if first.saved else second
    assert acted.resets[-1] == (feedback == "ef21" and not kept.applied)
    assert not kept.applied  # else this scene would show nothing


def test_lost_memory_begins_a_new_epoch_in_ef21() -> None:
    acted = act("ef21", {(3, 0): Fault(lose_memory=True)})
    lost = acted.turns(0)[2]
    assert lost.base == 0
    assert not lost.applied
    assert acted.resets == [0, 0, 0, 1, 1, 1]
    assert all(t.applied for t in acted.turns(0)[3:])


def test_lost_memory_costs_ef_its_error() -> None:
    acted = act("ef", {(3, 0): Fault(lose_memory=True), (4, 0): Fault(reply=LOST)})
    (_, before, lost, _, _) = acted.turns(0)
    assert lost.applied
    error = acted.stage.oracle.books[name(0)].given_up
    np.testing.assert_allclose(error, acted.vector(2) - before.sent, atol=1e-5)
    assert acted.stage.oracle.books[name(0)].causes == ["lost"]


_GAVE_UP = "Compressed: partition-0 gave up an error that it could not deliver"


@pytest.mark.parametrize("num_lost", [2, 3])
def test_error_of_ef_is_given_up_after_three_lost_turns(
    num_lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    script = {(2 + i, 0): Fault(reply=LOST) for i in range(num_lost)}
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    try:
        acted = act("ef", script, 6)
    finally:
        flower.removeHandler(caplog.handler)
    told = _GAVE_UP in caplog.messages
    causes = acted.stage.oracle.books[name(0)].causes
    if num_lost < 3:
        assert causes == []
        assert not told
        return
    assert causes == ["stale"]
    assert told
    fifth = acted.turns(0)[4]
    np.testing.assert_allclose(acted.vector(5), fifth.update, atol=1e-5)
    assert fifth.applied


@pytest.mark.parametrize("fraction_evaluate", [0.0, 1.0])
@pytest.mark.parametrize("num_lost", [3, 4])
def test_given_up_error_is_told_until_a_reply_arrives(
    num_lost: int,
    fraction_evaluate: float,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fourth lost reply is the one that told, or evaluation settled before it."""
    script = {(2 + i, 0): Fault(reply=LOST) for i in range(num_lost)}
    flower = logging.getLogger("flwr")
    monkeypatch.setattr(flower, "propagate", False)
    flower.addHandler(caplog.handler)
    try:
        act("ef", script, 7, fraction_evaluate=fraction_evaluate)
    finally:
        flower.removeHandler(caplog.handler)
    assert caplog.messages.count(_GAVE_UP) == 1


def test_memory_of_ef21_is_never_stale() -> None:
    script = {(2 + i, 0): Fault(reply=LOST) for i in range(4)}
    acted = act("ef21", script, 7)
    assert acted.memory(6).base == acted.memory(2).base != 0
    assert acted.resets[-1] == 0


@BOTH
def test_evaluation_settles_the_memory(feedback: str) -> None:
    acted = act(feedback, {(2, 0): Fault(reply=LOST)}, fraction_evaluate=1.0)
    for round_ in range(1, 6):
        for node in range(3):
            memory = acted.memory(round_, node)
            assert memory.pending is None
            assert memory.base == acted.applied[round_][name(node)]
    assert acted.memory(2).base == acted.memory(1).base
    if feedback == "ef21":
        total = sum(acted.vector(5, node) for node in range(3))
        np.testing.assert_allclose(acted.totals[5], total, rtol=1e-6, atol=1e-6)


@BOTH
def test_request_after_its_deadline_is_refused(
    feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def travel(stage: Stage, round_: int) -> None:
        ahead = 3601.0 if round_ == 1 else 0.0
        stage.oracle.clock = lambda: time.time() + ahead
        clock = SimpleNamespace(time=stage.oracle.clock)
        monkeypatch.setattr(clients.turns, "time", clock)

    acted = act(feedback, after_round=travel)
    assert 2 not in {round_ for _, round_ in acted.stage.clients.trained}
    assert acted.memory(2).seen == acted.memory(1).seen
    assert acted.memory(2).pending == acted.memory(1).pending
    assert all(t.applied for t in acted.turns(0))


@BOTH
def test_another_training_starts_with_fresh_memories(
    feedback: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At one time, so that its first tickets are older than the last ones.
    clock = SimpleNamespace(time_ns=lambda: 17 * 10**17)
    monkeypatch.setattr(strategies.turns, "time", clock)
    first = act(feedback)
    old = first.memory(5)
    second = act(feedback, num_rounds=2, stage=first.stage)
    assert second.memory(1).fid != old.fid
    assert second.memory(1).seen < old.seen
    turn, _ = second.turns(0)
    assert turn.base == 0
    assert turn.applied
    expected = 0.0 if feedback == "ef21" else turn.update
    np.testing.assert_allclose(second.vector(1), expected, atol=1e-5)


@BOTH
def test_node_that_is_sampled_rarely_settles_after_many_rounds(feedback: str) -> None:
    acted = act(feedback, {}, 40, num_nodes=6, fraction_train=0.17)
    gaps = []
    for node in range(6):
        turns = acted.turns(node)
        assert all(t.applied for t in turns)
        for before, after in pairwise(turns):
            gaps.append(after.ticket[1] - before.ticket[1])
            if feedback == "ef21":
                assert after.base == before.number
    assert max(gaps) >= 10


def test_new_node_joins_with_base_0() -> None:
    acted = act("ef21", {}, 12, num_nodes=6, fraction_train=0.34)
    joined = [acted.turns(node)[0] for node in range(6)]
    assert all(turn.base == 0 and turn.applied for turn in joined)
    assert max(turn.ticket[1] for turn in joined) > 3
    assert all(t.base for node in range(6) for t in acted.turns(node)[1:])


@BOTH
def test_first_round_is_that_of_fedavg(feedback: str) -> None:
    acted = act(feedback, {}, 1, uplink="identity()", num_nodes=5)
    first = [acted.turns(node)[0] for node in range(5)]
    weights = np.array([t.num_examples for t in first])
    assert len(set(weights)) > 1
    before, after = acted.stage.models
    trained = [before + 0.5 * t.update / t.num_examples for t in first]
    np.testing.assert_allclose(
        after, np.average(trained, axis=0, weights=weights), rtol=1e-6, atol=1e-7
    )


@BOTH
def test_round_without_arrays_is_rolled_back(feedback: str) -> None:
    acted = act(feedback, {}, 3, refuse_every=2)
    for node in range(3):
        assert [t.applied for t in acted.turns(node)] == [True, False, True]
        assert acted.memory(3, node).base == acted.memory(2, node).base
    np.testing.assert_array_equal(acted.totals[2], acted.totals[1])
    assert acted.applied[2] == acted.applied[1]
    _, first, second, third = acted.stage.models
    np.testing.assert_array_equal(second, first)
    assert (third != second).any()


@pytest.mark.parametrize("what", DAMAGES)
@BOTH
def test_damaged_reply_costs_its_sender_one_turn(feedback: str, what: str) -> None:
    rng = random.Random(what)
    stage = set_up(Scene(feedback, num_nodes=3))

    def ruin(reply: Message) -> None:
        is_second = stage.grid.exchange == 1 + 2
        if is_second and reply.metadata.src_node_id == stage.grid.node_ids[0]:
            damage(reply, what, rng)

    stage.grid.on_reply = ruin
    acted = act(feedback, stage=stage)
    assert [t.applied for t in acted.turns(0)] == [True, False, True, True, True]
    assert all(t.applied for node in (1, 2) for t in acted.turns(node))
    assert acted.resets[-1] == 0


#: One of these befalls node 0 in each of two rounds.
KINDS: dict[str, Fault | tuple[Fault, ...]] = {
    "nothing": Fault(),
    "lost request": Fault(request=LOST),
    "lost reply": Fault(reply=LOST),
    "repeated": Fault(request=DUPLICATED, reply=DUPLICATED),
    "late request": Fault(request=late(1)),
    "request also late": Fault(request=(0, 1)),
    "late reply": Fault(reply=late(1)),
    "reply also late": Fault(reply=(0, 1)),
    "crash before save": Fault(crash="before_save"),
    "crash after reply": Fault(crash="after_reply"),
    "copy not saved": COPY_NOT_SAVED,
    "lost memory": Fault(lose_memory=True),
    "copy without memory": (Fault(request=DUPLICATED), Fault(lose_memory=True)),
    "offline": Fault(offline=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("first", KINDS)
@BOTH
def test_every_pair_of_faults(feedback: str, first: str) -> None:
    for second, third in product(KINDS, ("nothing", "lost reply")):
        script = {(2, 0): KINDS[first], (3, 0): KINDS[second], (4, 0): KINDS[third]}
        acted = act(feedback, script, 6, num_nodes=2)
        # By then the two ends have found together again.
        assert all(t.applied for t in acted.turns(0)[-1:]), (second, third)
        assert acted.resets[-1] <= 2

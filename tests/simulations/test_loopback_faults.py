"""Every fault of the loopback grid, by what the server and the client see of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from simulations.loopback import (
    DUPLICATED,
    LOST,
    Event,
    EventKind,
    Fault,
    Faults,
    LoopbackGrid,
    RandomFaults,
    ScriptedFaults,
    late,
)

Seen = list[tuple[str, int, int]]  # (round of the request, node, its count of calls)


def counting_app() -> ClientApp:
    """Count the calls of a node in its state, and reply with the count."""
    app = ClientApp()

    def count(message: Message, context: Context) -> Message:
        calls = int(context.state.get("count", {"calls": 0})["calls"]) + 1
        context.state["count"] = ConfigRecord({"calls": calls})
        metrics = {"calls": calls, "node": int(context.node_config["partition-id"])}
        content = RecordDict({"metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    app.train()(count)
    app.evaluate()(count)
    return app


def exchange(
    grid: LoopbackGrid, kind: str = "train", ttl: float | None = None
) -> list[Message]:
    """Send a request to each listed node; its group id is the exchange's number."""
    group_id = str(grid.exchange + 1)
    return grid.send_and_receive(
        [
            Message(RecordDict(), node_id, kind, group_id=group_id, ttl=ttl)
            for node_id in grid.node_ids
        ]
    )


def seen(replies: list[Message]) -> Seen:
    metrics = [reply.content["metrics"] for reply in replies]
    return [
        (reply.metadata.group_id, m["node"], m["calls"])
        for reply, m in zip(replies, metrics, strict=True)
    ]


def calls_saved(grid: LoopbackGrid) -> list[int]:
    states = [grid.contexts[node_id].state for node_id in grid.node_ids]
    return [state["count"]["calls"] if "count" in state else 0 for state in states]


def scripted(fault: Fault, num_nodes: int = 2) -> LoopbackGrid:
    """Make a grid whose node 0 meets a fault in exchange 1."""
    faults = ScriptedFaults({(1, 0): fault})
    return LoopbackGrid(counting_app(), num_nodes, faults=faults)


def test_lost_request_never_reaches_the_client() -> None:
    grid = scripted(Fault(request=LOST))
    assert seen(exchange(grid)) == [("1", 1, 1)]
    assert calls_saved(grid) == [0, 1]
    assert grid.counts()[EventKind.REQUEST_LOST] == 1
    # It was sent all the same.
    assert [m.direction for m in grid.messages] == ["down", "down", "up"]
    assert seen(exchange(grid)) == [("2", 0, 1), ("2", 1, 2)]


def test_lost_reply_leaves_the_client_state_changed() -> None:
    grid = scripted(Fault(reply=LOST))
    assert seen(exchange(grid)) == [("1", 1, 1)]
    assert calls_saved(grid) == [1, 1]
    assert grid.counts()[EventKind.REPLY_LOST] == 1
    assert [m.direction for m in grid.messages] == ["down", "down", "up", "up"]


def test_duplicated_request_is_handled_twice() -> None:
    grid = scripted(Fault(request=DUPLICATED))
    replies = exchange(grid)
    assert sorted(seen(replies)) == [("1", 0, 1), ("1", 0, 2), ("1", 1, 1)]
    first, second = (r for r in replies if r.content["metrics"]["node"] == 0)
    assert first.metadata.reply_to_message_id == second.metadata.reply_to_message_id
    assert first.metadata.message_id != second.metadata.message_id
    assert calls_saved(grid) == [2, 1]
    assert grid.counts()[EventKind.REQUEST_DUPLICATED] == 1
    assert grid.counts()[EventKind.REQUEST_DELIVERED] == 3


def test_duplicated_reply_is_the_same_reply_twice() -> None:
    grid = scripted(Fault(reply=DUPLICATED))
    replies = exchange(grid)
    assert seen(replies) == [("1", 0, 1), ("1", 0, 1), ("1", 1, 1)]
    assert replies[0].metadata == replies[1].metadata
    assert replies[0].content is not replies[1].content
    assert calls_saved(grid) == [1, 1]
    assert grid.counts()[EventKind.REPLY_DUPLICATED] == 1
    assert grid.counts()[EventKind.REPLY_DELIVERED] == 3


def test_delayed_request_is_handled_later_beside_the_newer_one() -> None:
    grid = scripted(Fault(request=late(2)))
    assert seen(exchange(grid)) == [("1", 1, 1)]
    assert seen(exchange(grid)) == [("2", 0, 1), ("2", 1, 2)]
    # Node 0 gets the old request before the new one.
    assert sorted(seen(exchange(grid))) == [("1", 0, 2), ("3", 0, 3), ("3", 1, 3)]
    assert grid.counts()[EventKind.REQUEST_DELAYED] == 1


def test_delayed_reply_is_handed_over_in_a_later_exchange() -> None:
    grid = scripted(Fault(reply=late(1)))
    assert seen(exchange(grid)) == [("1", 1, 1)]
    assert calls_saved(grid) == [1, 1]
    replies = exchange(grid)
    assert sorted(seen(replies)) == [("1", 0, 1), ("2", 0, 2), ("2", 1, 2)]
    assert grid.counts()[EventKind.REPLY_DELAYED] == 1
    assert len(exchange(grid)) == 2


def test_one_copy_at_once_and_one_late() -> None:
    grid = scripted(Fault(reply=(0, 1)))
    assert ("1", 0, 1) in seen(exchange(grid))
    assert ("1", 0, 1) in seen(exchange(grid))
    assert ("1", 0, 1) not in seen(exchange(grid))


def test_late_reply_waits_for_an_exchange_of_its_type() -> None:
    grid = scripted(Fault(reply=late(1)))
    exchange(grid, "train")
    assert seen(exchange(grid, "evaluate")) == [("2", 0, 2), ("2", 1, 2)]
    assert ("1", 0, 1) in seen(exchange(grid, "train"))


def test_late_messages_expire() -> None:
    offset = [0.0]
    faults = ScriptedFaults(
        {(1, 0): Fault(request=late(1)), (1, 1): Fault(reply=late(1))}
    )
    grid = LoopbackGrid(
        counting_app(), 2, faults=faults, clock=lambda: time.time() + offset[0]
    )
    assert exchange(grid, ttl=60.0) == []
    offset[0] = 61.0
    replies = exchange(grid, ttl=3600.0)
    assert seen(replies) == [("2", 0, 1), ("2", 1, 2)]
    assert grid.counts()[EventKind.REQUEST_EXPIRED] == 1
    assert grid.counts()[EventKind.REPLY_EXPIRED] == 1


def test_crash_before_save_loses_reply_and_state() -> None:
    grid = scripted(Fault(crash="before_save"))
    exchange(grid)
    assert calls_saved(grid) == [0, 1]
    assert grid.counts()[EventKind.CRASHED_BEFORE_SAVE] == 1
    assert [m.direction for m in grid.messages] == ["down", "down", "up"]
    assert seen(exchange(grid)) == [("2", 0, 1), ("2", 1, 2)]


def test_crash_after_reply_delivers_the_reply_and_loses_the_state() -> None:
    grid = scripted(Fault(crash="after_reply"))
    assert seen(exchange(grid)) == [("1", 0, 1), ("1", 1, 1)]
    assert calls_saved(grid) == [0, 1]
    assert grid.counts()[EventKind.CRASHED_AFTER_REPLY] == 1
    # The next turn carries the same number with, possibly, another content.
    assert seen(exchange(grid)) == [("2", 0, 1), ("2", 1, 2)]


def test_lost_memory() -> None:
    faults = ScriptedFaults({(3, 0): Fault(lose_memory=True)})
    grid = LoopbackGrid(counting_app(), 2, faults=faults)
    counts = [[calls for _, _, calls in seen(exchange(grid))] for _ in range(4)]
    assert counts == [[1, 1], [2, 2], [1, 3], [2, 4]]
    assert grid.counts()[EventKind.MEMORY_LOST] == 1


def test_memory_stays_lost_when_the_same_call_crashes() -> None:
    faults = ScriptedFaults({(2, 0): Fault(lose_memory=True, crash="after_reply")})
    grid = LoopbackGrid(counting_app(), 1, faults=faults)
    exchange(grid)
    exchange(grid)
    assert calls_saved(grid) == [0]


@pytest.mark.parametrize("way", ["fault", "attribute"])
def test_offline_node_gets_flowers_error_from_the_superlink(way: str) -> None:
    grid = scripted(Fault(offline=way == "fault"))
    if way == "attribute":
        grid.offline.add(grid.node_ids[0])
    listed = grid.get_node_ids()
    assert (grid.node_ids[0] in listed) == (way == "fault")
    request_ids: list[str] = []
    grid.on_request = lambda message: request_ids.append(message.metadata.message_id)
    replies = exchange(grid)
    (error,) = [reply for reply in replies if reply.has_error()]
    assert error.error.code == ErrorCode.NODE_UNAVAILABLE
    assert error.metadata.src_node_id == SUPERLINK_NODE_ID
    sent_to = {m.message_id: m.node_id for m in grid.messages if m.direction == "down"}
    assert sent_to[error.metadata.reply_to_message_id] == grid.node_ids[0]
    assert len(request_ids) == 1
    assert calls_saved(grid) == [0, 1]
    assert grid.counts()[EventKind.UNREACHABLE] == 1
    grid.offline.clear()
    assert seen(exchange(grid)) == [("2", 0, 1), ("2", 1, 2)]


def test_late_request_to_a_node_that_has_gone_is_lost() -> None:
    faults = ScriptedFaults(
        {(1, 0): Fault(request=late(1)), (2, 0): Fault(offline=True)}
    )
    grid = LoopbackGrid(counting_app(), 1, faults=faults)
    assert exchange(grid) == []
    (reply,) = exchange(grid)
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
    assert calls_saved(grid) == [0]


def test_killed_client_does_not_even_report_its_exception() -> None:
    faults = ScriptedFaults({(1, 0): Fault(crash="before_save")})
    grid = LoopbackGrid(ClientApp(), 1, faults=faults)
    logging.getLogger("simulations.loopback.node").disabled = True
    try:
        assert exchange(grid) == []
        (reply,) = exchange(grid)
    finally:
        logging.getLogger("simulations.loopback.node").disabled = False
    assert reply.has_error()


def storm(seed: int, **changes: object) -> RandomFaults:
    settings = {
        "lose_request": 0.15,
        "lose_reply": 0.15,
        "duplicate_request": 0.15,
        "duplicate_reply": 0.15,
        "delay": 0.1,
        "crash_before_save": 0.04,
        "crash_after_reply": 0.04,
        "lose_memory": 0.02,
        "offline": 0.03,
    }
    return RandomFaults(seed, **(settings | changes))


def run_storm(seed: int, num_rounds: int = 60) -> tuple[LoopbackGrid, list[Seen]]:
    grid = LoopbackGrid(counting_app(), 5, faults=storm(seed))
    answers = []
    for _ in range(num_rounds):
        replies = [reply for reply in exchange(grid) if reply.has_content()]
        answers.append(seen(replies))
    return grid, answers


def test_same_seed_same_world() -> None:
    (one, answers), (two, again) = run_storm(7), run_storm(7)
    assert one.events == two.events
    assert answers == again
    assert one.messages == two.messages
    other, _ = run_storm(8)
    assert other.events != one.events


def test_a_storm_holds_every_fault_and_its_books_balance() -> None:
    grid, answers = run_storm(3, num_rounds=200)
    counts = grid.counts()
    kinds = set(EventKind) - {
        EventKind.CLIENT_RAISED,
        EventKind.REQUEST_EXPIRED,
        EventKind.REPLY_EXPIRED,
    }
    assert set(counts) == kinds
    grid.faults = Faults()
    for _ in range(4):  # what is still under way arrives
        answers.append(seen(exchange(grid)))
    counts = grid.counts()
    sent = Counter(m.direction for m in grid.messages)
    assert sent["down"] == 204 * 5
    assert counts[EventKind.REQUEST_DELIVERED] + counts[EventKind.UNREACHABLE] == (
        sent["down"]
        - counts[EventKind.REQUEST_LOST]
        + counts[EventKind.REQUEST_DUPLICATED]
    )
    assert counts[EventKind.REQUEST_DELIVERED] == (
        counts[EventKind.HANDLED]
        + counts[EventKind.CRASHED_BEFORE_SAVE]
        + counts[EventKind.CRASHED_AFTER_REPLY]
    )
    assert sent["up"] == (
        counts[EventKind.HANDLED] + counts[EventKind.CRASHED_AFTER_REPLY]
    )
    assert counts[EventKind.REPLY_DELIVERED] == (
        sent["up"] - counts[EventKind.REPLY_LOST] + counts[EventKind.REPLY_DUPLICATED]
    )
    assert counts[EventKind.REPLY_DELIVERED] == sum(len(a) for a in answers)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("lose_request", EventKind.REQUEST_LOST),
        ("duplicate_request", EventKind.REQUEST_DUPLICATED),
        ("crash_before_save", EventKind.CRASHED_BEFORE_SAVE),
        ("crash_after_reply", EventKind.CRASHED_AFTER_REPLY),
        ("lose_memory", EventKind.MEMORY_LOST),
        ("offline", EventKind.UNREACHABLE),
        ("lose_reply", EventKind.REPLY_LOST),
        ("duplicate_reply", EventKind.REPLY_DUPLICATED),
    ],
)
def test_frequencies_are_those_asked_for(setting: str, kind: EventKind) -> None:
    faults = RandomFaults(0, **{setting: 0.2})
    grid = LoopbackGrid(counting_app(), 20, faults=faults)
    for _ in range(30):
        exchange(grid)
    # 600 draws at 0.2: a standard deviation of 9.8, so five of them; seed fixed.
    assert abs(grid.counts()[kind] - 120) < 49
    faulty = {e.kind for e in grid.events} - {
        EventKind.HANDLED,
        EventKind.REQUEST_DELIVERED,
        EventKind.REPLY_DELIVERED,
    }
    assert faulty == {kind}


def test_delays_are_between_one_and_the_maximum() -> None:
    faults = RandomFaults(0, delay=1.0, max_delay=2, shuffle_order=False)
    copies = {faults.at(e, n, 0).request for e in range(20) for n in range(5)}
    assert copies == {late(1), late(2)}


def test_faults_of_a_place_depend_on_nothing_else() -> None:
    faults, same, other = storm(1), storm(1), storm(2)
    places = [(e, n, a) for e in range(20) for n in range(5) for a in range(2)]
    forwards = [faults.at(*place) for place in places]
    backwards = [same.at(*place) for place in reversed(places)]
    assert forwards == backwards[::-1]
    assert forwards != [other.at(*place) for place in places]
    # A second request in the same exchange has faults of its own.
    assert any(faults.at(e, 0, 0) != faults.at(e, 0, 1) for e in range(20))


def test_replies_and_requests_arrive_in_random_order() -> None:
    def orders(shuffle: bool) -> Iterator[tuple[list[int], list[int]]]:
        grid = LoopbackGrid(
            counting_app(), 8, faults=RandomFaults(5, shuffle_order=shuffle)
        )
        for _ in range(5):
            start = len(grid.events)
            replied = [node for _, node, _ in seen(exchange(grid))]
            handled: list[Event] = [
                e for e in grid.events[start:] if e.kind == EventKind.HANDLED
            ]
            yield [e.node for e in handled], replied

    in_order = list(range(8))
    for handled, replied in orders(shuffle=False):
        assert handled == replied == in_order
    for handled, replied in orders(shuffle=True):
        assert sorted(handled) == sorted(replied) == in_order
        assert handled != in_order
        assert replied != handled


def test_each_exchange_and_direction_has_an_order_of_its_own() -> None:
    orders = []
    for number, direction in ((1, "down"), (1, "up"), (2, "down")):
        arrivals = list(range(20))
        storm(0).shuffle(number, direction, arrivals)
        orders.append(tuple(arrivals))
    assert len(set(orders)) == 3


def test_a_message_sent_twice_is_two_requests() -> None:
    grid = scripted(Fault(reply=late(1)), num_nodes=1)
    message = Message(RecordDict(), grid.node_ids[0], "train")
    (first,) = grid.push_messages([message])
    (second,) = grid.push_messages([message])
    assert first != second
    for message_id, calls in ((first, 1), (second, 2)):
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        assert reply.content["metrics"]["calls"] == calls


def test_a_policy_of_ones_own_and_a_change_of_policy() -> None:
    class FirstReplyOnlyLost(Faults):
        def at(self, exchange: int, node: int, attempt: int) -> Fault:
            reply = LOST if attempt == 0 else (0,)
            return Fault(request=DUPLICATED, reply=reply)

    grid = LoopbackGrid(counting_app(), 1, faults=FirstReplyOnlyLost())
    assert seen(exchange(grid)) == [("1", 0, 2)]
    grid.faults = Faults()
    assert seen(exchange(grid)) == [("2", 0, 3)]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lose_reply: expected a probability.*1\.5"):
        RandomFaults(0, lose_reply=1.5)
    with pytest.raises(ValueError, match="offline: expected a probability"):
        RandomFaults(0, offline=-1)
    with pytest.raises(ValueError, match="exclude each other"):
        RandomFaults(0, crash_before_save=0.6, crash_after_reply=0.6)
    with pytest.raises(ValueError, match="max_delay: expected at least 1"):
        RandomFaults(0, max_delay=0)
    with pytest.raises(ValueError, match=r"Fault\.reply: expected delays"):
        Fault(reply=late(-1))

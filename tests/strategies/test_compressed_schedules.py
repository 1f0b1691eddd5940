"""A schedule on the server: bytes follow it, clients are told plain settings."""

from __future__ import annotations

from itertools import pairwise

import pytest
from flwr.app import ConfigRecord, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import Context
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
)

import fl_lowrank as fll
from clients import CompressionMod
from fl_lowrank.envelope import REQUEST_KEY, Request
from fl_lowrank.errors import ProtocolError, SettingError, SpecError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    distance,
    initial_arrays,
    logged,
    quadratic_app,
    train,
)

#: Entries of 30 that are kept in each round.
KEPT = [30, 24, 18, 12, 6, 6, 6]
UPLINK = "*: topk(fraction=linear(1.0, 0.2, rounds=5))"


class Listening:
    """Notes the requests that reach a client, before the mod takes them off."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        for record in message.content.config_records.values():
            if REQUEST_KEY in record:
                data = record[REQUEST_KEY]
                assert isinstance(data, bytes)
                self.requests.append(Request.unpack(data))
        return call_next(message, context)


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_bytes_follow_the_schedule(feedback: str) -> None:
    listening = Listening()
    app = quadratic_app([listening, CompressionMod()])
    strategy = Compressed(FedAvg(), UPLINK, feedback)
    result = train(strategy, app, num_rounds=len(KEPT))
    told = [r.codec for r in listening.requests if r.codec]
    assert all(str(fll.parse_rules(text)[0]) == text for text in told)
    fractions = [
        float(text.removeprefix("*: topk(fraction=").removesuffix(")")) for text in told
    ]
    # Every node is asked twice a round: to train, and to evaluate.
    assert fractions == [k / DIM for k in KEPT for _ in range(2 * NUM_NODES)]
    sizes = [int(row["bytes_up"]) // NUM_NODES for row in strategy.ledger.rounds()]
    steps = [before - after for before, after in pairwise(sizes)]
    assert all(abs(step - 4 * 6) <= 6 for step in steps[:4])  # float32, and positions
    assert all(abs(step) <= 2 for step in steps[4:])
    assert result.arrays is not None


def test_a_memory_outlives_a_change_of_compressor() -> None:
    """EF21 whose compressor has become exact takes the steps of FedAvg."""
    before = train(Compressed(FedAvg(), "*: topk(k=3)", "ef21"), num_rounds=2).arrays
    uplink = "*: steps(topk(k=3), at=3, then=identity())"
    after = train(Compressed(FedAvg(), uplink, "ef21"), num_rounds=4).arrays
    exact = train(FedAvg(), num_rounds=2, arrays=before).arrays
    assert distance(exact, after) < 1e-6 < distance(before, after)


def test_warm_starts_follow_a_rank() -> None:
    """A model of one matrix: the client's state restarts when the rank changes."""
    uplink = "*: powersgd(rank=steps(2, at=3, then=1))"
    strategy = Compressed(FedAvg(), uplink)
    with logged() as lines:
        train(strategy, num_rounds=5)
    assert not lines
    sizes = [int(row["bytes_up"]) for row in strategy.ledger.rounds()]
    assert sizes[0] == sizes[1] == sizes[2] + NUM_NODES * 4 * (5 + 6)  # one column
    assert sizes[2] == sizes[3] == sizes[4]


def test_clients_refuse_a_schedule() -> None:
    """As an older server would send it."""

    class Bad(Compressed):
        def configure_train(self, *args: object, **options: object) -> list[Message]:
            messages = list(super().configure_train(*args, **options))
            for message in messages:
                record = message.content["config"]
                request = Request.unpack(record[REQUEST_KEY])
                text = "topk(fraction=linear(0.5, 0.1, rounds=9))"
                changed = {**vars(request), "codec": text}
                record[REQUEST_KEY] = Request(**changed).pack()
            return messages

    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    with (
        logged() as lines,
        pytest.raises(ProtocolError, match=r"a schedule, .* only the server knows"),
    ):
        train(Bad(FedAvg(), "topk(k=3)"), grid=grid, num_rounds=3)
    assert any("is a schedule" in line for line in lines)


@pytest.mark.parametrize(
    ("uplink", "feedback", "what"),
    [
        # Only the last round's variance is too large.
        ("*: randk(fraction=linear(1.0, 0.4, rounds=9))", "ef", "shrunk"),
        ("*: steps(randk(k=3), at=5, then=topk(k=3))", "diana", "unbiased"),
    ],
)
def test_the_whole_schedule_must_go_with_the_feedback(
    uplink: str, feedback: str, what: str
) -> None:
    strategy = Compressed(FedAvg(), uplink, feedback)
    with pytest.raises(SettingError, match=what):
        train(strategy)
    assert strategy.ledger.rounds() == []


def test_a_rate_is_chosen_by_the_weakest_round() -> None:
    listening = Listening()
    app = quadratic_app([listening, CompressionMod()])
    uplink = "*: randk(k=linear(30, 3, rounds=4))"
    train(Compressed(FedAvg(), uplink, "diana"), app, num_rounds=5)
    used = {r.feedback for r in listening.requests if r.codec}
    assert used == {f"diana(rate={3 / 30})"}


def test_clipping_must_hold_in_every_round() -> None:
    inner = DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, 1.0, NUM_NODES)
    Compressed(inner, "*: topk(k=3)", "plain", linear=False)
    with pytest.raises(SettingError, match="randk"):
        Compressed(inner, "*: steps(topk(k=3), at=9, then=randk(k=3))", "plain")


def test_mistakes_are_told_before_any_round() -> None:
    with pytest.raises(SettingError, match="in round 9: topk: expected fraction"):
        Compressed(FedAvg(), "topk(fraction=linear(0.5, 0, rounds=9))")
    text = "a: steps(f16(), at=9, then=budget(bytes=9)); *: budget(bytes=9)"
    with pytest.raises(SpecError, match="at most one budget"):
        Compressed(FedAvg(), text)
    with pytest.raises(SettingError, match="found a schedule"):
        Compressed(FedAvg(), "topk(k=3)", "ef21sgdm(momentum=linear(1, 0.1, rounds=9))")


def test_the_round_is_counted_from_the_start_of_the_training() -> None:
    """Whoever starts at a later round gets its settings."""
    listening = Listening()
    grid = LoopbackGrid(quadratic_app([listening, CompressionMod()]), NUM_NODES)
    strategy = Compressed(FedAvg(), UPLINK)
    train(strategy, grid=grid, num_rounds=1)
    config = ConfigRecord({"lr": 0.1})
    messages = strategy.configure_train(4, initial_arrays(), config, grid)
    for message in messages:
        request = Request.unpack(message.content["config"][REQUEST_KEY])
        assert request.codec == "*: topk(fraction=0.4)"

"""Which strategies of Flower go with which feedback, and that they then work."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Krum,
    Strategy,
)

from clients import CompressionMod, storage
from fl_lowrank.errors import ProtocolError, SettingError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import (
    LR,
    NUM_NODES,
    Overriding,
    changing,
    distance,
    initial_arrays,
    num_examples,
    quadratic_app,
    train,
)
from tests.strategies.inners import LINEAR, OTHERS, clipped


class Passing(Strategy):
    """Another's wrapper, with the strategy that it wraps inside."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def configure_train(self, *args: object) -> object:
        return self.strategy.configure_train(*args)

    def aggregate_train(self, *args: object) -> object:
        return self.strategy.aggregate_train(*args)

    def configure_evaluate(self, *args: object) -> object:
        return self.strategy.configure_evaluate(*args)

    def aggregate_evaluate(self, *args: object) -> object:
        return self.strategy.aggregate_evaluate(*args)

    def summary(self) -> None:
        self.strategy.summary()


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_without_loss_every_strategy_gives_its_own_result(name: str) -> None:
    make = (LINEAR | OTHERS)[name]
    plain = train(make(), num_rounds=3)
    ours = train(Compressed(make(), "identity()", "plain"), num_rounds=3)
    assert distance(plain.arrays, ours.arrays) < 2e-6
    assert np.linalg.norm(ours.arrays["w"].numpy()) > 0.05
    for round_, metrics in plain.train_metrics_clientapp.items():
        found = ours.train_metrics_clientapp[round_]
        assert {k: found[k] for k in metrics} == pytest.approx(dict(metrics.items()))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_linear_strategies_go_with_every_memory(name: str, feedback: str) -> None:
    plain = train(LINEAR[name](), num_rounds=4)
    ours = train(Compressed(LINEAR[name](), "identity()", feedback), num_rounds=4)
    assert distance(plain.arrays, ours.arrays) < 2e-6


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("feedback", "todo"), [("ef", '"plain"'), ("ef21", 'memory="per-node"')]
)
def test_other_strategies_are_refused_a_memory(
    name: str, feedback: str, todo: str
) -> None:
    with pytest.raises(SettingError, match=f"looks at single replies.*use .*{todo}"):
        Compressed(OTHERS[name](), "identity()", feedback)
    # Without compression there is nothing to refuse.
    Compressed(OTHERS[name](), None, feedback)


def test_error_feedback_is_refused_whatever_the_server_knows() -> None:
    """What was sent must enter the model, and Krum drops most of it."""
    with pytest.raises(SettingError, match='use feedback="plain"'):
        Compressed(Krum(1), "identity()", "ef", memory="per-node")


@pytest.mark.parametrize("name", [*LINEAR, *OTHERS])
def test_per_node_memories_go_with_every_strategy(name: str) -> None:
    make = (LINEAR | OTHERS)[name]
    plain = train(make(), num_rounds=3)
    exact = Compressed(make(), "identity()", "ef21", memory="per-node")
    assert distance(plain.arrays, train(exact, num_rounds=3).arrays) < 2e-6


class Recording(FedAvg):
    """Looks at single replies: keeps what it sent and was given in the last round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, *args: object
    ) -> Iterable[Message]:
        self.sent = arrays["w"].numpy()
        return super().configure_train(server_round, arrays, *args)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        self.given = [r.content["arrays"]["w"].numpy() for r in replies]
        return super().aggregate_train(server_round, replies)


def test_each_decoded_reply_is_what_its_client_remembers() -> None:
    inner = Recording()
    strategy = Compressed(inner, "*: topk(fraction=0.3)", "ef21", memory="per-node")
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    train(strategy, grid=grid, num_rounds=5)
    assert len(inner.given) == NUM_NODES
    for partition, given in enumerate(inner.given):
        # The evaluation at the end has settled the memory.
        memory = storage.load(grid.contexts[grid.node_ids[partition]])
        update = (given - inner.sent) * num_examples(partition) / LR
        found = memory.tensors["w"].numpy()
        np.testing.assert_allclose(update, found, rtol=1e-4, atol=1e-3)
        assert np.linalg.norm(found) > 1.0


def test_a_user_may_say_that_a_strategy_is_linear() -> None:
    ours = train(Compressed(Overriding(), "identity()", "ef21", linear=True))
    assert distance(train(FedAvg()).arrays, ours.arrays) < 1e-6


def test_dp_around_compressed_is_refused() -> None:
    wrong = DifferentialPrivacyServerSideFixedClipping(
        Compressed(FedAvg(), "identity()", "plain"), 0.0, 1.0, 4
    )
    with pytest.raises(ProtocolError, match="must be the outermost wrapper"):
        train(wrong)


def test_dp_clips_what_was_decoded() -> None:
    norm = 0.5
    result = train(Compressed(clipped(norm), "identity()", "plain"), num_rounds=1)
    assert np.linalg.norm(result.arrays["w"].numpy()) <= norm * (1 + 1e-6)
    free = train(Compressed(FedAvg(), "identity()", "plain"), num_rounds=1)
    assert np.linalg.norm(free.arrays["w"].numpy()) > 2 * norm


def test_an_undecodable_reply_does_not_make_dp_skip_the_round() -> None:
    """A DP wrapper skips rounds with error replies; one client must not force that."""

    def spoil(reply: Message) -> None:
        reply.content["metrics"]["num-examples"] = -1

    app = quadratic_app([changing(spoil, 1), CompressionMod()])
    strategy = Compressed(clipped(), "identity()", "plain")
    result = train(strategy, app)
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert np.linalg.norm(result.arrays["w"].numpy()) > 0.1


PRIVATE = ["fixed clipping", "adaptive clipping"]


@pytest.mark.parametrize("name", PRIVATE)
def test_an_error_does_not_make_dp_skip_the_round(name: str) -> None:
    def fail(reply: Message) -> None:
        raise RuntimeError("out of memory")

    app = quadratic_app([changing(fail, 1), CompressionMod()])
    result = train(Compressed(OTHERS[name](), "identity()", "plain"), app)
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert np.linalg.norm(result.arrays["w"].numpy()) > 0.1


@pytest.mark.parametrize("name", PRIVATE)
def test_dp_outlives_a_round_without_replies(name: str) -> None:
    rounds: list[int] = []

    def spoil(reply: Message) -> None:
        rounds.append(1)
        if len(rounds) <= NUM_NODES:
            reply.content["metrics"]["num-examples"] = -1

    app = quadratic_app([changing(spoil, *range(NUM_NODES)), CompressionMod()])
    strategy = Compressed(OTHERS[name](), "identity()", "plain")
    result = train(strategy, app)
    assert sorted(result.train_metrics_clientapp) == [2]
    assert np.linalg.norm(result.arrays["w"].numpy()) > 0.1


@pytest.mark.parametrize("name", PRIVATE)
def test_what_clips_single_replies_is_not_linear(name: str) -> None:
    with pytest.raises(SettingError, match=r"clips single replies.*leave linear= out"):
        Compressed(OTHERS[name](), "identity()", "plain", linear=True)


def test_a_loss_that_is_no_number_does_not_reach_the_model() -> None:
    def spoil(reply: Message) -> None:
        reply.content["metrics"]["loss"] = float("nan")

    app = quadratic_app([changing(spoil, 1), CompressionMod()])
    result = train(Compressed(OTHERS["QFedAvg"](), "identity()", "plain"), app)
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert np.isfinite(result.arrays["w"].numpy()).all()


CLIENT_SIDE = {
    "fixed": (
        lambda: DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.0, 1.0, 4),
        fixedclipping_mod,
    ),
    "adaptive": (
        lambda: DifferentialPrivacyClientSideAdaptiveClipping(
            FedAvg(), 0.0, 4, initial_clipping_norm=1.0
        ),
        adaptiveclipping_mod,
    ),
}


@pytest.mark.parametrize("name", CLIENT_SIDE)
@pytest.mark.parametrize("uplink", ["identity()", "*: topk(fraction=0.5)"])
def test_clients_clip_before_they_compress(name: str, uplink: str) -> None:
    make, clipping_mod = CLIENT_SIDE[name]
    app = quadratic_app([CompressionMod(), clipping_mod])
    result = train(Compressed(make(), uplink, "plain"), app, num_rounds=1)
    norm = np.linalg.norm(result.arrays["w"].numpy())
    assert 0.1 < norm <= 1.0 + 1e-6


@pytest.mark.parametrize(
    ("uplink", "feedback", "culprit"),
    [
        ("identity()", "ef", 'feedback="ef"'),
        ("*: topk(fraction=0.1)", "ef21", 'feedback="ef21"'),
        ("*: randk(fraction=0.1)", "plain", r"randk\(fraction=0.1\)"),
        ("topk(fraction=0.1)", "plain", r"f16\(\)"),  # which small tensors get
    ],
)
@pytest.mark.parametrize("linear", [None, True])
def test_what_could_undo_the_clipping_is_refused(
    uplink: str, feedback: str, culprit: str, linear: bool | None
) -> None:
    make, _ = CLIENT_SIDE["fixed"]
    with pytest.raises(SettingError, match=f"clipped, and .*{culprit}"):
        Compressed(make(), uplink, feedback, linear=linear)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_metrics_function_sees_every_reply_once_a_round(wrapped: bool) -> None:
    calls: list[list[float]] = []

    def note(records: list[object], key: str) -> MetricRecord:
        assert key == "num-examples"
        calls.append([r["metrics"][key] for r in records])
        return MetricRecord({"seen": len(records)})

    inner = FedAvg(train_metrics_aggr_fn=note)
    strategy = Compressed(Passing(inner) if wrapped else inner, linear=True)
    result = train(strategy, arrays=initial_arrays(buffers=True), num_rounds=3)
    assert calls == [[10, 20, 30, 40]] * 3
    assert result.train_metrics_clientapp[3]["seen"] == 4
    assert inner.train_metrics_aggr_fn is note

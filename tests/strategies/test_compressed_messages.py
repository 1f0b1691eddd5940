"""What Flower, the user's code and the inner strategy see of the messages."""

from __future__ import annotations

import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod
from fl_lowrank.envelope import EVALUATE, REQUEST_KEY, TRAIN, Request
from simulations.loopback import Fault, LoopbackGrid, ScriptedFaults
from strategies import Compressed
from tests.strategies.federation import (
    LR,
    NUM_NODES,
    initial_arrays,
    quadratic_app,
    train,
)

NUM_ROUNDS = 2


def recorded(**options: object) -> tuple[list[Message], Compressed, ConfigRecord]:
    """Give all requests as they reach the clients, but introductions."""
    requests: list[Message] = []
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    grid.on_request = requests.append
    strategy = Compressed(FedAvg(), "topk(fraction=0.5)", seed=3)
    config = ConfigRecord({"lr": LR, "batch": 8})
    train(strategy, grid=grid, config=config, num_rounds=NUM_ROUNDS, **options)
    return requests[NUM_NODES:], strategy, config


def request_of(message: Message) -> Request:
    return Request.unpack(message.content["config"][REQUEST_KEY])


def test_every_message_has_a_request_of_its_own() -> None:
    # The mod takes the request out of the message, so note it before that.
    seen: list[Request] = []
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)

    def note(message: Message) -> None:
        if "config" in message.content:
            seen.append(request_of(message))

    grid.on_request = note
    train(Compressed(FedAvg(), "topk(fraction=0.5)"), grid=grid, num_rounds=NUM_ROUNDS)

    assert len(seen) == 2 * NUM_ROUNDS * NUM_NODES
    assert len({r.ticket for r in seen}) == len(seen)
    assert [r.ticket for r in seen] == sorted(r.ticket for r in seen)
    assert len({r.draws for r in seen}) == len(seen)
    assert len({(r.fid, r.epoch) for r in seen}) == 1
    purposes = [TRAIN] * NUM_NODES + [EVALUATE] * NUM_NODES
    assert [r.purpose for r in seen] == purposes * NUM_ROUNDS
    assert {(r.codec, r.feedback) for r in seen} == {("topk(fraction=0.5)", "ef")}
    # Nothing is applied before the first round, one turn of each client after it.
    first, second = seen[:NUM_NODES], seen[NUM_NODES : 2 * NUM_NODES]
    assert {r.applied for r in first} == {0}
    assert len({r.applied for r in second} - {0}) == NUM_NODES


def test_the_users_config_arrives_and_is_not_changed() -> None:
    messages, _, config = recorded()
    rounds = [m.content["config"]["server-round"] for m in messages]
    assert rounds == [1] * 8 + [2] * 8
    trained = [m for m in messages if m.metadata.message_type == "train"]
    assert {m.content["config"]["batch"] for m in trained} == {8}
    assert {m.content["config"]["lr"] for m in trained} == {LR}
    assert set(config) == {"lr", "batch", "server-round"}


def test_messages_expire_with_the_rounds_timeout() -> None:
    messages, _, _ = recorded(timeout=77.0)
    assert {m.metadata.ttl for m in messages} == {77.0}
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    seen: list[Message] = []
    grid.on_request = seen.append
    train(FedAvg(), grid=grid, timeout=77.0)
    assert 77.0 not in {m.metadata.ttl for m in seen}  # Flower alone does not


def test_the_users_code_sees_neither_request_nor_memory_and_keeps_its_state() -> None:
    seen: list[set[str]] = []
    calls: list[int] = []

    def user_mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        seen.append({k for r in message.content.config_records.values() for k in r})
        state = context.state.setdefault("mine", MetricRecord({"calls": 0}))
        state["calls"] += 1
        calls.append(state["calls"])
        return call_next(message, context)

    app = quadratic_app([CompressionMod(), user_mod])
    grid = LoopbackGrid(app, NUM_NODES)
    train(Compressed(FedAvg(), "topk(fraction=0.1)"), grid=grid, num_rounds=NUM_ROUNDS)
    assert seen == ([{"lr", "server-round"}] * 4 + [{"server-round"}] * 4) * NUM_ROUNDS
    # It is not called for introductions either.
    assert calls == [n for n in range(1, 2 * NUM_ROUNDS + 1) for _ in range(NUM_NODES)]
    for context in grid.contexts.values():
        assert set(context.state) == {"mine", "fl-lowrank"}
        assert context.state["mine"]["calls"] == 2 * NUM_ROUNDS


def test_a_message_without_a_config_gets_one_for_the_way_only() -> None:
    class Bare(FedAvg):
        def configure_train(self, *args: object) -> list[Message]:
            messages = list(super().configure_train(*args))
            for message in messages:
                message.content.pop("config", None)
            return messages

    records: list[list[str]] = []
    app = ClientApp(mods=[CompressionMod()])

    @app.train()
    def train_(message: Message, context: Context) -> Message:
        del context
        records.append(list(message.content))
        content = {
            "arrays": message.content["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    train(Compressed(Bare(fraction_evaluate=0.0), "identity()"), app, num_rounds=1)
    assert records == [["arrays"]] * NUM_NODES


def test_the_inner_strategy_gets_the_error_replies() -> None:
    got: list[list[str | None]] = []

    class Looking(FedAvg):
        def aggregate_train(self, server_round: int, replies: object) -> object:
            replies = list(replies)
            got.append([m.error.reason if m.has_error() else None for m in replies])
            return super().aggregate_train(server_round, replies)

    # Node 1 is unreachable in round 1 (exchange 2) and raises in round 2 (exchange 4).
    def fail(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        reply = call_next(message, context)
        if grid.exchange == 4 and context.node_config["partition-id"] == 1:
            raise RuntimeError("no memory left")
        return reply

    faults = ScriptedFaults({(2, 1): Fault(offline=True)})
    app = quadratic_app([CompressionMod(), fail])
    grid = LoopbackGrid(app, NUM_NODES, faults=faults)
    inner = Looking()
    strategy = Compressed(inner, "identity()", linear=True)
    train(strategy, grid=grid, num_rounds=3)
    assert [len(g) for g in got] == [2, 2, 1]
    assert [g[0] for g in got] == [None] * 3  # the mean of the others
    assert got[0][1] == "The node is offline."
    assert "no memory left" in str(got[1][1])


def test_a_linear_strategy_gets_one_reply_with_all_examples() -> None:
    got: list[tuple[str, int, list[str]]] = []

    class Looking(FedAvg):
        def aggregate_train(self, server_round: int, replies: object) -> object:
            for reply in list(replies):
                content = reply.content
                weight = content["metrics"]["num-examples"]
                arrays: ArrayRecord = content["arrays"]
                got.append((type(weight).__name__, weight, list(arrays)))
            return super().aggregate_train(server_round, replies)

    initial = initial_arrays(buffers=True)
    train(
        Compressed(Looking(), "topk(fraction=0.1)", linear=True),
        arrays=initial,
        num_rounds=1,
    )
    assert got == [("int", 10 + 20 + 30 + 40, list(initial))]


@pytest.mark.parametrize("key", ["samples", "num-examples"])
def test_another_name_for_the_number_of_examples(key: str) -> None:
    def rename(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        reply = call_next(message, context)
        metrics = reply.content["metrics"]
        metrics[key] = metrics.pop("num-examples")
        return reply

    app = quadratic_app([CompressionMod(), rename])
    strategy = Compressed(FedAvg(weighted_by_key=key), "identity()")
    result = train(strategy, app)
    assert [r["num_replies"] - r["dropped"] for r in strategy.ledger.rounds()] == [4, 4]
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(3.0)

"""The loopback grid without faults: a real strategy and a real client app."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg, FedProx

from simulations.loopback import EventKind, LoopbackGrid

NUM_NODES = 4
DIM = 3


def data_of(partition: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one node's linear regression problem."""
    rng = np.random.default_rng(partition)
    x = rng.normal(size=(10 + 5 * partition, DIM))
    return x, x @ np.arange(1.0, DIM + 1) + 0.1 * rng.normal(size=len(x))


def gradient_step(weights: np.ndarray, partition: int) -> np.ndarray:
    x, y = data_of(partition)
    return weights - 0.1 * x.T @ (x @ weights - y) / len(x)


def linear_app(**kwargs: object) -> ClientApp:
    app = ClientApp(**kwargs)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        counter = context.state.setdefault("count", ConfigRecord({"calls": 0}))
        counter["calls"] += 1
        w = message.content["arrays"]["w"].numpy()
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(gradient_step(w, partition))}),
                "metrics": MetricRecord(
                    {
                        "num-examples": len(data_of(partition)[0]),
                        "calls": float(counter["calls"]),
                    }
                ),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        x, y = data_of(int(context.node_config["partition-id"]))
        error = x @ message.content["arrays"]["w"].numpy() - y
        metrics = MetricRecord({"num-examples": len(x), "loss": float(error @ error)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial_arrays() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(DIM))})


def requests(
    grid: LoopbackGrid, kind: str = "train", ttl: float | None = None, **arrays: Array
) -> list[Message]:
    """Make one request for each node, ordered by partition."""
    arrays = arrays or {"w": Array(np.zeros(DIM))}
    return [
        Message(RecordDict({"arrays": ArrayRecord(arrays)}), node_id, kind, ttl=ttl)
        for node_id in grid.node_ids
    ]


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


def test_fedavg_equals_the_weighted_mean_computed_by_hand() -> None:
    grid = LoopbackGrid(linear_app(), NUM_NODES)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    result = strategy.start(grid=grid, initial_arrays=initial_arrays(), num_rounds=5)

    expected = np.zeros(DIM)
    sizes = np.array([len(data_of(i)[0]) for i in range(NUM_NODES)])
    for _ in range(5):
        steps = [gradient_step(expected, i) for i in range(NUM_NODES)]
        expected = np.average(steps, axis=0, weights=sizes)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-12)
    assert not np.allclose(expected, 0.0)
    losses = [m["loss"] for m in result.evaluate_metrics_clientapp.values()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    # A train and an evaluate exchange a round, both with every node.
    assert grid.exchange == 10
    assert grid.counts() == {
        EventKind.REQUEST_DELIVERED: 10 * NUM_NODES,
        EventKind.HANDLED: 10 * NUM_NODES,
        EventKind.REPLY_DELIVERED: 10 * NUM_NODES,
    }


def test_state_persists_across_rounds_and_nodes_do_not_share_it() -> None:
    grid = LoopbackGrid(linear_app(), NUM_NODES)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    result = strategy.start(grid=grid, initial_arrays=initial_arrays(), num_rounds=3)
    calls = [m["calls"] for m in result.train_metrics_clientapp.values()]
    assert calls == pytest.approx([1.0, 2.0, 3.0])
    states = [grid.contexts[node_id].state for node_id in grid.node_ids]
    assert [state["count"]["calls"] for state in states] == [3] * NUM_NODES
    assert len({id(state) for state in states}) == NUM_NODES
    # Rounds without an evaluation are no exchanges.
    assert grid.exchange == 3


def test_forget_empties_the_state_of_that_node_only() -> None:
    grid = LoopbackGrid(linear_app(), NUM_NODES)
    grid.send_and_receive(requests(grid))
    grid.forget(grid.node_ids[2])
    grid.send_and_receive(requests(grid))
    calls = [grid.contexts[n].state["count"]["calls"] for n in grid.node_ids]
    assert calls == [2, 2, 1, 2]


def test_context_holds_node_config_and_run_config() -> None:
    grid = LoopbackGrid(
        echo_app(),
        2,
        run_config={"lr": 0.5},
        node_configs=[{"memory-dir": "a"}, {"memory-dir": "b"}],
    )
    first, second = (grid.contexts[node_id] for node_id in grid.node_ids)
    assert first.node_config == {
        "partition-id": 0,
        "num-partitions": 2,
        "memory-dir": "a",
    }
    assert second.node_config["partition-id"] == 1
    assert second.node_config["memory-dir"] == "b"
    assert first.run_config == second.run_config == {"lr": 0.5}
    assert first.run_config is not second.run_config
    assert first.run_id == grid.run.run_id
    assert first.node_id == grid.node_ids[0]


def test_mods_run_and_the_first_one_is_outermost() -> None:
    trace: list[str] = []

    def tracer(name: str) -> Callable[..., Message]:
        def mod(message: Message, context: Context, call_next: Callable) -> Message:
            trace.append(f"{name} in")
            reply = call_next(message, context)
            trace.append(f"{name} out")
            return reply

        return mod

    app = ClientApp()

    @app.train(mods=[tracer("outer"), tracer("inner")])
    def train(message: Message, context: Context) -> Message:
        trace.append("app")
        return Message(message.content, reply_to=message)

    grid = LoopbackGrid(app, 1)
    assert len(grid.send_and_receive(requests(grid))) == 1
    assert trace == ["outer in", "inner in", "app", "inner out", "outer out"]


def test_exception_gives_an_error_reply_and_drops_the_state_of_that_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = context.state.setdefault("r", ConfigRecord({"seen": []}))
        record["seen"].append(message.metadata.group_id)
        if message.metadata.group_id == "bad":
            raise ZeroDivisionError("no such thing")
        return Message(RecordDict(), reply_to=message)

    grid = LoopbackGrid(app, 1)
    (node_id,) = grid.node_ids
    for group_id in ("good", "bad", "better"):
        request = Message(RecordDict(), node_id, "train", group_id=group_id)
        with caplog.at_level(logging.CRITICAL):
            (reply,) = grid.send_and_receive([request])
        assert reply.has_error() == (group_id == "bad")
        assert reply.metadata.src_node_id == node_id
        assert reply.metadata.reply_to_message_id == request.metadata.message_id
        if group_id == "bad":
            assert reply.error == Error(
                ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
                "<class 'ZeroDivisionError'>:<'no such thing'>",
            )
    assert grid.contexts[node_id].state["r"]["seen"] == ["good", "better"]
    assert grid.counts()[EventKind.CLIENT_RAISED] == 1
    assert grid.counts()[EventKind.HANDLED] == 2


def test_strategy_survives_a_client_that_raises() -> None:
    app = linear_app()

    def mod(message: Message, context: Context, call_next: Callable) -> Message:
        if context.node_config["partition-id"] == 0:
            raise RuntimeError("broken")
        return call_next(message, context)

    broken = ClientApp()
    broken.train(mods=[mod])(lambda message, context: app(message, context))
    grid = LoopbackGrid(broken, NUM_NODES)
    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid=grid, initial_arrays=initial_arrays(), num_rounds=1)
    steps = [gradient_step(np.zeros(DIM), i) for i in range(1, NUM_NODES)]
    sizes = [len(data_of(i)[0]) for i in range(1, NUM_NODES)]
    np.testing.assert_allclose(
        result.arrays["w"].numpy(), np.average(steps, axis=0, weights=sizes)
    )


def test_client_and_server_share_no_objects() -> None:
    seen: list[Message] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(message)
        message.content["config"]["lr"] = -1.0
        message.content["arrays"]["w"] = Array(np.ones(1))
        return Message(message.content, reply_to=message)

    grid = LoopbackGrid(app, 2)
    content = RecordDict(
        {"arrays": initial_arrays(), "config": ConfigRecord({"lr": 0.5})}
    )
    batch = [Message(content, node_id, "train") for node_id in grid.node_ids]
    replies = grid.send_and_receive(batch)
    assert content["config"]["lr"] == 0.5
    np.testing.assert_array_equal(content["arrays"]["w"].numpy(), np.zeros(DIM))
    assert len(seen) == len(replies) == 2
    for request, reply in zip(seen, replies, strict=True):
        assert reply.content is not request.content
        assert reply.content["config"]["lr"] == -1.0


def test_custom_arrays_arrive_byte_for_byte_and_are_counted() -> None:
    grid = LoopbackGrid(echo_app(), NUM_NODES)
    payload = bytes(range(256)) * 4
    arrays = {
        "payload": Array("uint8", (len(payload),), "fl-lowrank/1", payload),
        "empty": Array("uint8", (0,), "fl-lowrank/1", b""),
    }
    replies = grid.send_and_receive(requests(grid, **arrays))
    for reply in replies:
        array = reply.content["arrays"]["payload"]
        assert (array.data, array.stype) == (payload, "fl-lowrank/1")
        assert reply.content["arrays"]["empty"].data == b""
    assert grid.array_bytes_down == grid.array_bytes_up == NUM_NODES * len(payload)
    for record in grid.messages:
        assert record.array_bytes == len(payload)
        # Keys, dtypes, shapes and metadata: some hundred bytes, never an npy header.
        assert 0 < record.proto_bytes - record.array_bytes < 400
    down = [r for r in grid.messages if r.direction == "down"]
    assert [r.node_id for r in down] == grid.node_ids
    assert grid.bytes_down == sum(r.proto_bytes for r in down)
    assert grid.bytes_up == sum(r.proto_bytes for r in grid.messages) - grid.bytes_down
    assert {r.message_type for r in grid.messages} == {"train"}


def test_bytes_of_a_run_equal_the_array_sizes() -> None:
    grid = LoopbackGrid(linear_app(), NUM_NODES)
    strategy = FedProx(fraction_evaluate=1.0)
    strategy.start(grid=grid, initial_arrays=initial_arrays(), num_rounds=3)
    size = len(Array(np.zeros(DIM)).data)
    # Down in train and evaluate, up in train only.
    assert grid.array_bytes_down == 2 * 3 * NUM_NODES * size
    assert grid.array_bytes_up == 3 * NUM_NODES * size


def test_node_ids_are_random_uint64_and_depend_on_the_seed_alone() -> None:
    first, again = LoopbackGrid(echo_app(), 50), LoopbackGrid(echo_app(), 50)
    other = LoopbackGrid(echo_app(), 50, seed=1)
    assert first.node_ids == again.node_ids
    assert first.run.run_id == again.run.run_id
    assert not set(first.node_ids) & set(other.node_ids)
    assert any(node_id > 2**63 for node_id in first.node_ids)
    assert all(node_id < 2**64 for node_id in first.node_ids)
    assert sorted(first.node_ids) == first.get_node_ids() != first.node_ids
    assert [info.node_id for info in first.get_nodes()] == first.get_node_ids()
    # The largest ids survive the way through protobuf.
    replies = first.send_and_receive(requests(first))
    assert [r.metadata.src_node_id for r in replies] == first.node_ids


def test_given_node_ids_are_used_and_checked() -> None:
    assert LoopbackGrid(echo_app(), 2, node_ids=[2**64 - 1, 7]).get_node_ids() == [
        7,
        2**64 - 1,
    ]
    with pytest.raises(ValueError, match="expected 2 different node_ids"):
        LoopbackGrid(echo_app(), 2, node_ids=[7, 7])
    with pytest.raises(ValueError, match="one mapping for each of 2 nodes, found 1"):
        LoopbackGrid(echo_app(), 2, node_configs=[{}])


def test_push_and_pull_in_two_steps() -> None:
    grid = LoopbackGrid(echo_app(), 3)
    batch = requests(grid)
    ids = grid.push_messages(batch)
    assert ids == [message.metadata.message_id for message in batch]
    (reply,) = grid.pull_messages(ids[1:2])
    assert reply.metadata.reply_to_message_id == ids[1]
    rest = grid.pull_messages(ids)
    assert [r.metadata.reply_to_message_id for r in rest] == [ids[0], ids[2]]
    assert grid.pull_messages(ids) == []


def test_two_grids_in_one_process_keep_their_run_ids() -> None:
    grids = [LoopbackGrid(linear_app(), 2, seed=seed) for seed in (0, 1)]
    runs: list[int] = []
    for grid in grids:
        grid.on_request = lambda message: runs.append(message.metadata.run_id)
        FedAvg(fraction_evaluate=0.0).start(
            grid=grid, initial_arrays=initial_arrays(), num_rounds=1
        )
    assert runs == [grids[0].run.run_id] * 2 + [grids[1].run.run_id] * 2


def test_hooks_see_what_arrives_and_the_app_can_be_replaced() -> None:
    grid = LoopbackGrid(echo_app(), 2)
    arrived: list[str] = []
    returned: list[str] = []
    grid.on_request = lambda message: arrived.append(message.metadata.message_id)
    grid.on_reply = lambda message: returned.append(
        message.metadata.reply_to_message_id
    )
    grid.send_and_receive(requests(grid))
    assert arrived == returned
    assert len(arrived) == 2
    grid.client_app = ClientApp()
    replies = grid.send_and_receive(requests(grid))
    assert [reply.has_error() for reply in replies] == [True, True]


def test_wrong_use_is_refused() -> None:
    grid = LoopbackGrid(echo_app(), 2)
    with pytest.raises(TypeError, match="expected a list of messages"):
        grid.send_and_receive(message for message in requests(grid))
    with pytest.raises(ValueError, match="to one of its nodes"):
        grid.send_and_receive([Message(RecordDict(), 1234, "train")])
    with pytest.raises(RuntimeError, match="another grid"):
        grid.set_run(grid.run)
    assert grid.exchange <= 1

    app = ClientApp()
    app.train()(lambda message, context: message)
    grid = LoopbackGrid(app, 1)
    with pytest.raises(ValueError, match="make replies with Message"):
        grid.send_and_receive(requests(grid))


def test_an_expired_request_is_not_delivered_and_gets_flowers_error() -> None:
    offset = [0.0]
    grid = LoopbackGrid(echo_app(), 1, clock=lambda: time.time() + offset[0])
    (request,) = requests(grid, ttl=60.0)
    offset[0] = 61.0
    (reply,) = grid.send_and_receive([request])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.reply_to_message_id == request.metadata.message_id
    assert grid.counts() == {EventKind.REQUEST_EXPIRED: 1}


def test_a_reply_that_comes_after_the_deadline_is_replaced_by_flowers_error() -> None:
    offset = [0.0]
    grid = LoopbackGrid(echo_app(), 1, clock=lambda: time.time() + offset[0])

    def take_long(message: Message) -> None:
        offset[0] = 61.0

    grid.on_request = take_long
    (reply,) = grid.send_and_receive(requests(grid, ttl=60.0))
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert grid.counts()[EventKind.REPLY_EXPIRED] == 1
    assert grid.counts()[EventKind.HANDLED] == 1


def test_ray_and_torch_are_not_imported() -> None:
    code = (
        "import sys, simulations.loopback as l; from flwr.clientapp import ClientApp\n"
        "l.LoopbackGrid(ClientApp(), 2)\n"
        "print(sorted({'ray', 'torch'} & set(sys.modules)), 'flwr' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == "[] True"


def test_overhead_of_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    grid = LoopbackGrid(echo_app(), 100)
    array = Array("uint8", (10_000,), "fl-lowrank/1", bytes(10_000))
    batches = [requests(grid, payload=array) for _ in range(3)]
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        replies = grid.send_and_receive(batch)
        seconds.append(time.perf_counter() - start)
        assert len(replies) == 100
    ms = min(seconds) * 1e3 / 100
    with capsys.disabled():
        print(f"\nloopback: {ms:.2f} ms for a 10 kB request, its call and its reply")
    assert ms < 10.0  # generous: the machine may be busy

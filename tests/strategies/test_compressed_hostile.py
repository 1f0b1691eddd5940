"""Hostile clients: whatever one sends, the others go on as if it were not there.

What the mod has answered is changed on its way, as a client could that runs other code.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common import Context
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod
from fl_lowrank import ModelCodec, rng
from fl_lowrank.codecs.varint import write_varint
from fl_lowrank.envelope import REQUEST_KEY, STYPE, Reply, Request
from fl_lowrank.framing import seal
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from strategies.replies import layout_of
from tests.fl_lowrank.hostility import DENSE, SEEDED, body_of, integers, raw
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    Overriding,
    changing,
    fedavg_by_hand,
    initial_arrays,
    logged,
    partition_of,
    quadratic_app,
    train,
)

BAD = 1
NUM_ROUNDS = 4
Change = Callable[[Message], object]


def data_of(reply: Message) -> bytes:
    return reply.content["arrays"][REQUEST_KEY].data


def put(reply: Message, data: bytes, stype: str = STYPE) -> None:
    array = Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)
    reply.content["arrays"] = ArrayRecord({REQUEST_KEY: array})


def on_bytes(change: Callable[[bytes], bytes]) -> Change:
    return lambda reply: put(reply, change(data_of(reply)))


def on_reply(change: Callable[[Reply], Reply]) -> Change:
    return on_bytes(lambda data: change(Reply.unpack(data)).pack())


def with_lossy(data: bytes) -> Change:
    return on_reply(lambda reply: dataclasses.replace(reply, lossy=data))


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def encoded(**arrays: torch.Tensor) -> bytes:
    return ModelCodec("*: identity()").encode(arrays, {}, rng.stream(0))[0]


def forged(*body: bytes) -> bytes:
    """Write an update of one tensor by hand."""
    return seal(write_varint(1), write_varint(0), *body)


NOISE = random.Random(0).randbytes(500)
W = torch.ones(DIM)

ATTACKS: dict[str, tuple[Change, str]] = {
    "random bytes": (on_bytes(lambda _: NOISE), "was it sent by fl-lowrank?"),
    "nothing": (on_bytes(lambda _: b""), "was it sent by fl-lowrank?"),
    "random payload": (with_lossy(NOISE), ""),
    "cut in the head": (on_bytes(lambda b: b[:30]), ""),
    "cut in the payload": (on_bytes(lambda b: b[:150]), "truncated"),
    "cut at the end": (on_bytes(lambda b: b[:-1]), ""),
    "a byte more": (on_bytes(lambda b: b + b"\0"), ""),
    "a flipped bit": (on_bytes(flip_last), ""),
    "a megabyte of zeros": (with_lossy(bytes(1 << 20)), ""),
    "another model": (with_lossy(encoded(v=W, w=W)), "both ends must train the same"),
    "another shape": (with_lossy(encoded(w=torch.ones(DIM + 1))), "'w'"),
    "another dtype": (with_lossy(encoded(w=W.double())), "'w'"),
    "a huge update": (with_lossy(encoded(w=1e30 * W)), "the norm of its update is"),
    "a long update": (with_lossy(encoded(w=1e8 * W)), "more than"),
    "NaN": (
        with_lossy(forged(body_of((DIM,), DENSE, raw(*[float("nan")] * DIM)))),
        "tensor 'w': ",
    ),
    "infinity": (
        with_lossy(forged(body_of((DIM,), DENSE, raw(*[float("inf")] * DIM)))),
        "tensor 'w': ",
    ),
    "10^12 entries": (
        with_lossy(forged(body_of((10**12,), SEEDED, integers(1), raw(1.0)))),
        "tensor 'w': ",
    ),
    "2^62 numbers": (
        with_lossy(forged(body_of((DIM,), DENSE, b"\0" + write_varint(2**62)))),
        "tensor 'w': ",
    ),
    "another version": (on_bytes(lambda b: b[:2] + b"\x09" + b[3:]), "version"),
    "another training": (
        on_reply(lambda r: dataclasses.replace(r, fid=bytes(16))),
        "another training or epoch",
    ),
    "another ticket": (
        on_reply(lambda r: dataclasses.replace(r, ticket=(r.ticket[0], 2**40))),
        "late or repeated",
    ),
    "another type": (
        lambda reply: put(reply, data_of(reply), "numpy.ndarray"),
        "expected one array of type fl-lowrank/1",
    ),
    "many arrays": (
        lambda r: r.content.update({"more": r.content["arrays"].copy()}),
        "found 2 arrays",
    ),
    "an empty record more": (
        lambda r: r.content.update({"aaa": ArrayRecord({})}),
        "in 2 records",
    ),
    "a record of another name": (
        lambda r: r.content.update({"foo": r.content.pop("arrays")}),
        "differ from those of most replies",
    ),
    "no arrays": (lambda r: r.content.pop("arrays"), "found 0 arrays"),
    "zero examples": (
        lambda r: r.content["metrics"].update({"num-examples": 0}),
        "'num-examples' in (0, 1e+12]",
    ),
    "1e300 examples": (
        lambda r: r.content["metrics"].update({"num-examples": 1e300}),
        "'num-examples' in (0, 1e+12]",
    ),
    "NaN examples": (
        lambda r: r.content["metrics"].update({"num-examples": float("nan")}),
        "'num-examples' in (0, 1e+12]",
    ),
}


def check(
    change: Change,
    reason: str,
    feedback: str,
    num_warnings: int,
    bad: int = BAD,
    inner: type[FedAvg] = FedAvg,
) -> None:
    app = quadratic_app([changing(change, bad), CompressionMod()])
    strategy = Compressed(inner(), uplink="identity()", feedback=feedback)
    with logged() as lines:
        result = train(strategy, app, num_rounds=NUM_ROUNDS)
    others = [i for i in range(NUM_NODES) if i != bad]
    expected = fedavg_by_hand(NUM_ROUNDS, others)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)
    ours = [x for x in lines if x.startswith("Compressed: left out the reply of part")]
    assert len(ours) == num_warnings
    assert all(f"partition-{bad}" in line and reason in line for line in ours)


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
@pytest.mark.parametrize("name", ATTACKS)
def test_bad_replies_are_left_out(name: str, feedback: str) -> None:
    change, reason = ATTACKS[name]
    check(change, reason, feedback, NUM_ROUNDS)


@pytest.mark.parametrize("name", ATTACKS)
def test_so_they_are_by_strategies_that_look_at_single_ones(name: str) -> None:
    """The first client is at fault, whose reply the sum of all is written to."""
    change, reason = ATTACKS[name]
    check(change, reason, "plain", NUM_ROUNDS, 0, Overriding)
    check(change, reason, "plain", NUM_ROUNDS, 0)


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_a_replayed_reply_is_left_out(feedback: str) -> None:
    """The first one is good, so nothing is known against it but its ticket."""
    replies: list[bytes] = []

    def replay(reply: Message) -> None:
        replies.append(data_of(reply))
        if len(replies) == 1:  # never seen by the server
            put(reply, b"")
        else:
            put(reply, replies[0])

    check(replay, "", feedback, NUM_ROUNDS)


def with_base(base: int) -> Change:
    return on_reply(lambda reply: dataclasses.replace(reply, base=base))


def other_kind(asked: str, kept: str) -> Mod:
    """Give a client that keeps another kind of memory than it is asked to."""

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        config = next(iter(message.content.config_records.values()))
        request = Request.unpack(config[REQUEST_KEY])
        if partition_of(context) == BAD and request.feedback == asked:
            request = dataclasses.replace(request, feedback=kept)
            config[REQUEST_KEY] = request.pack()
        return call_next(message, context)

    return mod


#: What is remembered, what the log says of the liar in mode ``sum``, and the lie.
LIARS: dict[str, tuple[str, str, Mod]] = {
    "no memory": ("ef21", "its memory is lost", changing(with_base(0), BAD)),
    "another turn": ("ef21", "its memory holds turn 5", changing(with_base(5), BAD)),
    "ef for ef21": ("ef21", "", other_kind("ef21", "ef")),
    "plain for ef21": ("ef21", "", other_kind("ef21", "plain")),
    "ef21 for ef": ("ef", "", other_kind("ef", "ef21")),
    "plain for diana": ("diana", "", other_kind("diana", "plain")),
}


@pytest.mark.parametrize("memory", ["sum", "per-node"])
@pytest.mark.parametrize("name", LIARS)
def test_a_lying_memory_can_be_taken_out(name: str, memory: str) -> None:
    """The rounds go on with a liar, and without it they end where they should.

    Who sends what another kind of memory would is an honest client with other data as
    far as one can see, so only lies about turns are named.
    """
    feedback, reason, liar = LIARS[name]
    if reason == "its memory is lost" and memory == "per-node":
        reason = ""  # it joins anew each time, which costs nobody else
    strategy = Compressed(FedAvg(), "identity()", feedback, memory=memory)
    grid = LoopbackGrid(quadratic_app([liar, CompressionMod()]), NUM_NODES)
    distances: list[float] = []
    honest = [i for i in range(NUM_NODES) if i != BAD]
    wanted = fedavg_by_hand(100, honest)

    def after_round(server_round: int, arrays: ArrayRecord) -> None:
        away = arrays["w"].numpy() - wanted
        distances.append(float(np.linalg.norm(away) / np.linalg.norm(wanted)))
        if server_round == 6:
            strategy.evict(f"partition-{BAD}")
            grid.offline.add(grid.node_ids[BAD])

    with logged() as lines:
        train(strategy, grid=grid, num_rounds=40, evaluate_fn=after_round)
    assert np.isfinite(distances).all()
    assert distances[6] > 0.05
    assert distances[40] < 1e-4
    ours = [x for x in lines if x.startswith("Compressed: left out the reply of")]
    assert bool(ours) == bool(reason)
    assert all(f"partition-{BAD}: {reason}" in line for line in ours)


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_the_reply_of_another_client_is_left_out(feedback: str) -> None:
    stolen: dict[int, bytes] = {}

    def spy(message, context, call_next):  # type: ignore[no-untyped-def]
        reply = call_next(message, context)
        if message.metadata.message_type == "train" and reply.content.array_records:
            stolen[partition_of(context)] = data_of(reply)
        return reply

    def steal(reply: Message) -> None:
        put(reply, stolen[0])

    class OthersFirst(FedAvg):
        def configure_train(self, *args: object) -> list[Message]:
            return sorted(
                super().configure_train(*args),
                key=lambda m: m.metadata.dst_node_id == grid.node_ids[BAD],
            )

    app = quadratic_app([changing(steal, BAD), spy, CompressionMod()])
    grid = LoopbackGrid(app, NUM_NODES)
    strategy = Compressed(OthersFirst(), uplink="identity()", feedback=feedback)
    with logged() as lines:
        result = train(strategy, grid=grid, num_rounds=NUM_ROUNDS)
    expected = fedavg_by_hand(NUM_ROUNDS, [0, 2, 3])
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)
    ours = [x for x in lines if "the reply of partition-1: its ticket" in x]
    assert len(ours) == NUM_ROUNDS


EXACT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "long real numbers": ({"bn.running_mean": torch.full((3,), 3e38)}, "real numbers"),
    "large counts": ({"bn.num_batches_tracked": torch.tensor(2**63 - 1)}, "integers"),
    "counts of a million": ({"bn.num_batches_tracked": torch.tensor(10**6)}, "more"),
    "negative counts": ({"bn.num_batches_tracked": torch.tensor(-(10**6))}, "more"),
}


@pytest.mark.parametrize("inner", [FedAvg, Overriding])
@pytest.mark.parametrize("name", EXACT)
def test_arrays_that_travel_exactly_are_judged(name: str, inner: type[FedAvg]) -> None:
    changed, reason = EXACT[name]

    def change(reply: Reply) -> Reply:
        layout = {k: v for k, v in layout_of(arrays).items() if k != "w"}
        exact = ModelCodec.decode(reply.exact, layout) | changed
        return dataclasses.replace(reply, exact=encoded(**exact))

    arrays = initial_arrays(buffers=True)
    app = quadratic_app([changing(on_reply(change), BAD), CompressionMod()])
    with logged() as lines:
        strategy = Compressed(inner(), uplink="identity()", feedback="plain")
        result = train(strategy, app, num_rounds=NUM_ROUNDS, arrays=arrays)
    others = [i for i in range(NUM_NODES) if i != BAD]
    expected = fedavg_by_hand(NUM_ROUNDS, others)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)
    assert result.arrays["bn.num_batches_tracked"].numpy() == 5 * NUM_ROUNDS
    assert np.abs(result.arrays["bn.running_mean"].numpy()).max() <= NUM_NODES
    ours = [x for x in lines if "left out the reply of partition-1: the change" in x]
    assert len(ours) == NUM_ROUNDS
    assert all(reason in line for line in ours)


@pytest.mark.parametrize("inner", [FedAvg, Overriding])
def test_a_sketch_that_nobody_asked_for_is_judged(inner: type[FedAvg]) -> None:
    long = torch.zeros(DIM).index_fill(0, torch.tensor([3]), 1e9)
    codec = ModelCodec("*: sketch(fraction=0.1, capacity=1.0)")
    data = codec.encode({"w": long}, {}, rng.stream(5))[0]
    check(with_lossy(data), "the norm of its update", "plain", NUM_ROUNDS, BAD, inner)


@pytest.mark.parametrize("key", ["", "x" * 1000, 5, "partition-0", "1²3", "\0\n", None])
def test_a_hostile_introduction_does_no_harm(key: object) -> None:
    def lie(message, context, call_next):  # type: ignore[no-untyped-def]
        reply = call_next(message, context)
        if partition_of(context) == 1 and REQUEST_KEY in reply.content:
            about = {} if key is None else {"client-key": key, "version": "9" * 999}
            content = RecordDict({REQUEST_KEY: ConfigRecord(about)})
            reply = Message(content, reply_to=message)
        return reply

    app = quadratic_app([lie, CompressionMod()])
    result = train(Compressed(FedAvg(), uplink="identity()"), app)
    # A name that is no name keeps the node out; any other is as good as its own.
    known = isinstance(key, str) and 0 < len(key) <= 128 and key.isprintable()
    expected = fedavg_by_hand(2, range(NUM_NODES) if known else [0, 2, 3])
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)


def test_a_hostile_evaluation_does_no_harm() -> None:
    def lie(message, context, call_next):  # type: ignore[no-untyped-def]
        reply = call_next(message, context)
        if message.metadata.message_type == "evaluate" and partition_of(context) == 1:
            reply.content["metrics"]["num-examples"] = -1
        if message.metadata.message_type == "evaluate" and partition_of(context) == 2:
            reply.content["metrics"]["more"] = 1.0
        if message.metadata.message_type == "evaluate" and partition_of(context) == 3:
            return Message(Error(99, "no"), reply_to=message)
        return reply

    app = quadratic_app([lie, CompressionMod()])
    with logged() as lines:
        result = train(Compressed(FedAvg(), uplink="identity()"), app)
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert all(
        np.isfinite(m["error"]) for m in result.evaluate_metrics_clientapp.values()
    )
    for partition, reason in ((1, "'num-examples' in (0,"), (2, "metrics differ")):
        start = f"Compressed: left out the evaluation of partition-{partition}: "
        ours = [line for line in lines if line.startswith(start)]
        assert len(ours) == 2
        assert all(reason in line for line in ours)

"""The mod alone, called with hand-made requests as a server would make them."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode

from clients import CompressionMod, storage
from clients.homes import client_key
from fl_lowrank import ModelCodec
from fl_lowrank.envelope import (
    EVALUATE,
    HELLO,
    REQUEST_KEY,
    STYPE,
    TRAIN,
    Reply,
    Request,
)
from fl_lowrank.model import layout_of
from simulations.loopback.transport import acting_as_client, become_server

FID = bytes(range(16))
BEFORE = np.linspace(0, 1, 64, dtype=np.float32)
STEP = np.linspace(1, 2, 64, dtype=np.float32)
LAYOUT = layout_of({"w": torch.zeros(64)})
NODE, RUN = 7, 1


def request(**changes: object) -> Request:
    plain = Request(
        purpose=TRAIN,
        fid=FID,
        epoch=1,
        ticket=(1, 1),
        applied=0,
        draws=5,
        scale=0.5,
        deadline=time.time() + 100.0,
        codec="identity()",
        feedback="ef",
    )
    return replace(plain, **changes)


def message(data: bytes | None, config: dict[str, object] | None = None) -> Message:
    become_server(RUN)
    content = RecordDict({"arrays": ArrayRecord({"w": Array(BEFORE)})})
    values = dict(config or {}) | ({} if data is None else {REQUEST_KEY: data})
    if values:
        content["config" if config else REQUEST_KEY] = ConfigRecord(values)
    made = Message(content, dst_node_id=NODE, message_type="train")
    made.metadata.__dict__["_message_id"] = "m"
    return made


class Client:
    """A user's app behind the mod, with its Context."""

    def __init__(self, partition: int | None = 3) -> None:
        config = {} if partition is None else {"partition-id": partition}
        self.context = Context(RUN, NODE, config, RecordDict(), {})
        self.mod = CompressionMod()
        self.saw: list[list[str]] = []

    def app(self, message: Message, context: Context) -> Message:
        del context
        self.saw.append([f"{k}.{n}" for k, r in message.content.items() for n in r])
        arrays = ArrayRecord({"w": Array(BEFORE + STEP)})
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    def answer(self, asked: Message) -> Message:
        with acting_as_client(RUN, NODE):
            return self.mod(asked, self.context, self.app)

    def serve(self, **changes: object) -> Message:
        return self.answer(message(request(**changes).pack()))


def reply_in(answer: Message) -> Reply:
    (array,) = answer.content["arrays"].values()
    assert (array.stype, array.dtype) == (STYPE, "uint8")
    assert array.shape == (len(array.data),)
    return Reply.unpack(array.data)


def test_the_update_travels_in_weighted_units_of_the_step() -> None:
    answer = Client().serve()
    reply = reply_in(answer)
    update = ModelCodec.decode(reply.lossy, LAYOUT)["w"].numpy()
    np.testing.assert_allclose(update, 10 * STEP / 0.5, rtol=1e-5)
    assert (reply.fid, reply.epoch, reply.ticket, reply.base) == (FID, 1, (1, 1), 0)
    assert answer.content["metrics"]["num-examples"] == 10


def test_a_message_without_a_request_passes_untouched() -> None:
    client = Client()
    answer = client.answer(message(None, {"lr": 0.1}))
    assert answer.content["arrays"]["w"].numpy().tolist() == (BEFORE + STEP).tolist()
    assert client.saw == [["arrays.w", "config.lr"]]
    assert not client.context.state


def test_the_request_is_taken_out_of_the_message() -> None:
    client = Client()
    client.answer(message(request().pack(), {"lr": 0.1}))
    client.answer(message(request(ticket=(1, 2)).pack()))
    assert client.saw == [["arrays.w", "config.lr"], ["arrays.w"]]


@pytest.mark.parametrize(("partition", "key"), [(3, "partition-3"), (None, "node-7")])
def test_it_introduces_itself_without_calling_the_user(
    partition: int | None, key: str
) -> None:
    client = Client(partition)
    answer = client.serve(purpose=HELLO)
    assert (
        answer.content[REQUEST_KEY]["client-key"] == key == client_key(client.context)
    )
    assert client.saw == []
    assert not client.context.state


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ticket": (1, 5)}, r"\(1, 5\) is not newer than \(1, 5\)"),
        ({"ticket": (1, 4)}, "delayed or repeated"),
        ({"ticket": (0, 9)}, "delayed or repeated"),
        ({"ticket": (1, 6), "deadline": 1.0}, "after its deadline"),
        ({"ticket": (1, 6), "codec": "unknown()"}, "unknown"),
        ({"ticket": (1, 6), "feedback": "ef99"}, "ef99"),
    ],
)
def test_requests_that_cannot_be_served_change_nothing(
    changes: dict[str, object], reason: str
) -> None:
    client = Client()
    client.serve(ticket=(1, 5))
    before = storage.to_bytes(storage.load(client.context))
    answer = client.serve(**changes)
    assert answer.has_error()
    assert answer.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    assert re.search(reason, answer.error.reason)
    assert answer.error.reason.startswith("CompressionMod: ")
    assert storage.to_bytes(storage.load(client.context)) == before
    assert len(client.saw) == 1  # an hour of training is not begun in vain


@pytest.mark.parametrize("data", [b"", b"FQ", bytes(200), request().pack()[:-1]])
def test_damaged_requests_are_errors(data: bytes) -> None:
    client = Client()
    answer = client.answer(message(data))
    assert answer.has_error()
    assert "envelope" in answer.error.reason
    assert client.saw == []


def test_a_request_of_another_kind_of_value_is_an_error() -> None:
    answer = Client().answer(message(None, {REQUEST_KEY: "text", "lr": 1.0}))
    assert "envelope" in answer.error.reason


def test_memory_is_saved_before_the_reply_leaves() -> None:
    client = Client()
    reply = reply_in(client.serve(codec="*: topk(k=4)"))
    memory = storage.load(client.context)
    assert memory is not None
    assert memory.pending == (reply.turn, reply.lossy)
    np.testing.assert_allclose(memory.tensors["w"].numpy(), 10 * STEP / 0.5, rtol=1e-5)


def test_what_was_applied_leaves_the_error_and_what_was_not_stays() -> None:
    applied, lost = Client(), Client()
    for client, count in ((applied, 1), (lost, 0)):
        reply = reply_in(client.serve(codec="*: topk(k=4)"))
        turn = reply.turn * count
        client.serve(purpose=EVALUATE, ticket=(1, 2), applied=turn)
    update = torch.from_numpy(10 * STEP / 0.5)
    whole = storage.load(lost.context).tensors["w"]
    rest = storage.load(applied.context).tensors["w"]
    torch.testing.assert_close(whole, update)
    assert torch.count_nonzero(rest) == 60
    torch.testing.assert_close(rest[:60], update[:60])


def test_evaluation_is_not_compressed() -> None:
    answer = Client().serve(purpose=EVALUATE)
    assert answer.content["arrays"]["w"].numpy().tolist() == (BEFORE + STEP).tolist()


def test_the_turns_of_one_update_never_share_an_id() -> None:
    replies = [reply_in(Client().serve()) for _ in range(20)]
    assert len({r.turn for r in replies}) == 20
    assert len({r.lossy for r in replies}) == 1


def test_another_training_starts_with_an_empty_memory() -> None:
    client = Client()
    client.serve(codec="*: topk(k=4)", ticket=(9, 9))
    reply = reply_in(client.serve(fid=bytes(16), ticket=(1, 1)))
    update = ModelCodec.decode(reply.lossy, LAYOUT)["w"].numpy()
    np.testing.assert_allclose(update, 10 * STEP / 0.5, rtol=1e-5)

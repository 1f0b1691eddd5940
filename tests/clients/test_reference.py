"""A client that is sent compressed models, by a server that may be hostile."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from clients import FileHome, storage
from fl_lowrank.broadcast import MAX_LINKS, Broadcast, Link
from fl_lowrank.envelope import EVALUATE, REQUEST_KEY, STYPE, sealed
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.reference import fingerprint, moved
from fl_lowrank.rng import Rng
from simulations.loopback.transport import become_server
from tests.clients.test_mod import BEFORE, FID, NODE, RUN, Client, reply_in, request

LAYOUT = layout_of({"w": torch.zeros(64)})
FIRST = {"w": torch.from_numpy(BEFORE)}
STEP_OF_USER = np.linspace(1, 2, 64, dtype=np.float32)
NO_EXACT, _ = ModelCodec("*: identity()").encode({}, {}, Rng(0))


def payload(seed: int, numel: int = 64) -> bytes:
    x = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    return ModelCodec("*: natural()").encode({"w": x}, {}, Rng(0))[0]


MOVE, STEP = payload(1), payload(2)
SECOND = moved(FIRST, MOVE, LAYOUT)
LINK = Link(fingerprint(FIRST), MOVE)
CHAIN = Broadcast(fingerprint(SECOND), 256, links=(LINK,), step=STEP, exact=NO_EXACT)


class Following(Client):
    """A client, and what its user's code is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[np.ndarray] = []
        self.ticket = 0

    def app(self, message: Message, context: object) -> Message:
        self.given.append(message.content["arrays"]["w"].numpy())
        return super().app(message, context)

    def send(
        self, data: bytes, arrays: dict[str, Array] | None = None, **changes: object
    ) -> Message:
        """Let it answer a compressed model."""
        become_server(RUN)
        self.ticket += 1
        usual = {"ticket": (1, self.ticket), "feedback": "plain"}
        asked = request(**(usual | changes))
        array = Array("uint8", (len(data),), STYPE, data)
        content = RecordDict(
            {
                "arrays": ArrayRecord({**(arrays or {}), REQUEST_KEY: array}),
                "config": ConfigRecord({REQUEST_KEY: asked.pack()}),
            }
        )
        made = Message(content, dst_node_id=NODE, message_type="train")
        made.metadata.__dict__["_message_id"] = "m"
        return self.answer(made)

    def start(self, **changes: object) -> Message:
        whole = Broadcast(fingerprint(FIRST), 256, is_whole=True)
        return self.send(whole.pack(), {"w": Array(BEFORE)}, **changes)

    def kept(self) -> bytes:
        return b"".join(
            storage.to_bytes(memory)
            for key in (storage.STATE_KEY, storage.REFERENCE_KEY)
            if (memory := storage.load(self.context, key)) is not None
        )


def test_it_follows_and_answers_relative_to_what_it_was_given() -> None:
    client = Following()
    assert not client.start().has_error()
    reply = reply_in(client.send(CHAIN.pack()))
    given = moved(SECOND, STEP, LAYOUT)["w"].numpy()
    assert client.given[0].tobytes() == BEFORE.tobytes()
    assert client.given[1].tobytes() == given.tobytes()
    # The app answers with BEFORE + STEP, wherever it was sent.
    update = ModelCodec.decode(reply.lossy, LAYOUT)["w"].numpy()
    ended = client.given[1] + update / 20
    np.testing.assert_allclose(ended, BEFORE + STEP_OF_USER, atol=1e-4)
    memory = storage.load(client.context, storage.REFERENCE_KEY)
    assert memory is not None
    assert torch.equal(memory.tensors["w"], SECOND["w"])
    assert client.saw == [["arrays.w"]] * 2


def test_evaluation_follows_too() -> None:
    client = Following()
    client.start(purpose=EVALUATE)
    client.send(CHAIN.pack(), purpose=EVALUATE)
    assert (
        client.given[1].tobytes() == moved(SECOND, STEP, LAYOUT)["w"].numpy().tobytes()
    )


def test_one_who_holds_nothing_says_so() -> None:
    client = Following()
    answer = client.send(CHAIN.pack())
    assert "holds no model of this training" in answer.error.reason
    client.start(fid=bytes(16))  # of another training
    answer = client.send(CHAIN.pack())
    assert "holds no model of this training" in answer.error.reason
    assert len(client.given) == 1


def test_a_late_whole_model_is_refused() -> None:
    client = Following()
    client.start()
    client.send(CHAIN.pack())
    before = client.kept()
    answer = client.start(ticket=(1, 1))
    assert answer.has_error()
    assert client.kept() == before


OTHER, _ = ModelCodec("*: natural()").encode(
    {"v": torch.ones(64), "w": torch.ones(9)}, {}, Rng(0)
)
HOSTILE = {
    "another shape": Link(LINK.before, payload(1, numel=65)),
    "other names": Link(LINK.before, OTHER),
    "no payload": Link(LINK.before, b""),
    "not its end": Link(LINK.before, payload(3)),
    "an unknown beginning": Link(5, MOVE),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_followed_changes_nothing(what: str) -> None:
    client = Following()
    client.start()
    before = client.kept()
    sent = Broadcast(CHAIN.reference, 2**63, links=(HOSTILE[what],), exact=NO_EXACT)
    answer = client.send(sent.pack())
    assert answer.has_error()
    assert answer.error.reason.startswith("CompressionMod: ")
    assert client.kept() == before
    assert len(client.given) == 1
    assert not client.send(CHAIN.pack()).has_error()  # it still knows its way


def test_mutations_cost_an_error_reply() -> None:
    """No mutation raises, is served as another model, or moves the reference."""
    client, rng, data = Following(), random.Random(3), CHAIN.pack()
    client.start()
    num_refused = 0
    before, wanted = client.kept(), moved(SECOND, STEP, LAYOUT)["w"].numpy()
    for _ in range(1500):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(changed))
            kind = rng.randrange(3)
            if kind == 0:
                changed[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del changed[place : place + rng.randrange(1, 9)]
            else:
                changed[place:place] = rng.randbytes(rng.randrange(1, 9))
        if rng.random() < 0.5:  # with a right checksum of the head
            size = 38 + 16
            changed[: size + 4] = sealed(bytes(changed[:size]))
        if bytes(changed) == data:
            continue
        answer = client.send(bytes(changed))
        if answer.has_error():
            assert client.kept() == before
            num_refused += 1
            continue
        # What it announces of the model's size tells only where to look.
        assert client.given[-1].tobytes() == wanted.tobytes()
        client = Following()
        client.start()
        before = client.kept()
    assert num_refused > 1400


def test_announced_sizes_cost_no_memory() -> None:
    client = Following()
    client.start()
    head = bytearray(Broadcast(CHAIN.reference, 2**63, step=b"").pack()[:-4])
    head[22:38] = b"\xff" * 16
    many = Broadcast(1, 0, links=(Link(7, MOVE),) * MAX_LINKS).pack()
    tracemalloc.start()
    for data in (sealed(bytes(head)), many):
        assert client.send(data).has_error()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_references_and_memories_are_files_of_their_own(tmp_path: Path) -> None:
    client = Following()
    client.mod.memory = home = FileHome(tmp_path)
    client.start()
    client.send(CHAIN.pack())
    folder = home.path(client.context, FID).parent
    full = sorted(p.name for p in folder.iterdir() if p.suffix == ".full")
    assert full == sorted([f"{FID.hex()}.full", f"{FID.hex()}-reference.full"])
    path = home.path(client.context, FID, "reference")
    assert path.stat().st_mode & 0o777 == 0o600
    kept = path.stat().st_mtime_ns
    client.send(Broadcast(CHAIN.reference, 256, step=STEP, exact=NO_EXACT).pack())
    assert path.stat().st_mtime_ns == kept  # nothing is written where nothing moves
    assert not client.context.state
    path.write_bytes(path.read_bytes()[:-9])  # damaged on the disk
    answer = client.send(CHAIN.pack())
    assert "has lost it" in answer.error.reason
    assert not client.start().has_error()
    assert not client.send(CHAIN.pack()).has_error()

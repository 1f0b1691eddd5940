"""A memory survives its bytes, and Flower's Context with its protobuf."""

from __future__ import annotations

import json
import random
import sys
import zlib
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext

from clients import heads, storage
from clients.turns import Memory
from fl_lowrank.errors import InputError, WireError
from tests.clients.memories import FID, FULL, assert_same, assert_same_state, context


@pytest.mark.parametrize("memory", [FULL, Memory(bytes(16), "plain")])
def test_what_is_saved_is_loaded_bit_for_bit(memory: Memory) -> None:
    before = context()
    storage.save(before, memory)
    proto = context_to_proto(before).SerializeToString()
    after = context_from_proto(ProtoContext.FromString(proto))
    loaded = storage.load(after)
    assert loaded is not None
    assert_same(memory, loaded)
    assert storage.to_bytes(loaded) == storage.to_bytes(memory)
    state = storage.load_state(after)
    assert_same_state(state, memory)
    assert state is not None
    assert not state.tensors


def test_a_fresh_context_holds_no_memory() -> None:
    assert storage.load(context()) is None
    assert storage.load_state(context()) is None


def test_saving_replaces_and_touches_nothing_else() -> None:
    here = context()
    here.state["mine"] = ConfigRecord({"a": 1})
    storage.save(here, FULL)
    storage.save(here, Memory(bytes(16), "plain"))
    loaded = storage.load(here)
    assert loaded is not None
    assert loaded.feedback == "plain"
    assert set(here.state) == {"mine", storage.STATE_KEY}


@pytest.mark.parametrize("record", [ConfigRecord({"a": 1}), ArrayRecord({})])
def test_a_record_of_somebody_else_is_refused(record: ConfigRecord) -> None:
    here = context()
    here.state[storage.STATE_KEY] = record
    with pytest.raises(WireError, match="use another key for your own state"):
        storage.load(here)


def test_short_numbers_take_two_bytes() -> None:
    def size(dtype: torch.dtype) -> int:
        tensors = {"w": torch.zeros(10_000, dtype=dtype)}
        return len(storage.to_bytes(Memory(FID, "ef", tensors=tensors)))

    for dtype in (torch.float16, torch.bfloat16):
        assert 20_000 < size(dtype) < 20_500 < size(torch.float32)


def test_tensors_are_written_without_a_copy() -> None:
    w = torch.zeros(1000)
    parts = storage.to_parts(Memory(FID, "ef", tensors={"w": w}))
    (raw,) = [p for p in parts if isinstance(p, memoryview)]
    w[0] = 1.0
    assert (
        bytes(raw[:4]) == b"\x00\x00\x80\x3f"[:: 1 if sys.byteorder[0] == "l" else -1]
    )


def test_what_cannot_be_read_is_not_written() -> None:
    memory = Memory(FID, "ef", tensors={"w": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(InputError, match="expected tensors of float16"):
        storage.to_bytes(memory)


DATA = storage.to_bytes(FULL)


def test_every_cut_is_refused() -> None:
    for size in range(len(DATA)):
        with pytest.raises(WireError):
            storage.from_bytes(DATA[:size])
    with pytest.raises(WireError, match="announces"):
        storage.from_bytes(DATA + b"\0")


def test_every_flipped_bit_is_refused() -> None:
    rng = random.Random(1)
    places = range(len(DATA)) if len(DATA) < 300 else rng.sample(range(len(DATA)), 300)
    for place in [*range(16), *places]:
        changed = bytearray(DATA)
        changed[place] ^= 1 << rng.randrange(8)
        with pytest.raises(WireError):
            storage.from_bytes(bytes(changed))


def headed(**changes: object) -> bytes:
    """A memory with another head, whose checksums are right."""
    size = heads.head_size(DATA[: heads.FRAME.size])
    head = json.loads(DATA[heads.FRAME.size : size - heads.CRC.size]) | changes
    text = json.dumps(head).encode()
    framed = heads.FRAME.pack(b"FLM1", len(text)) + text
    return framed + heads.CRC.pack(zlib.crc32(framed)) + DATA[size:]


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": [1]},
        {"seen": None},
        {"seen": [1, "2"]},
        {"epoch": -1},
        {"epoch": 2**64},
        {"base": 1.5},
        {"base": True},
        {"gave_up": 1},
        {"feedback": 3},
        {"fid": "00"},
        {"fid": "xy" * 16},
        {"ident": None},
        {"pending": [1, 2]},
        {"payload": 10**18},
        {"payload": -1},
        {"order": "middle"},
        {"tensors": [["w", "float32", [10**12]]]},
        {"tensors": [["w", "float32", [2**63, 2**63]]]},
        {"tensors": [["w", "float32", [-3, -4]]]},
        {"tensors": [["w", "int7", [3]]]},
        {"tensors": [["w", "float32"]]},
        {"tensors": {"w": 1}},
        {"tensors": 7},
        {"codec": [[1, "float32", [3]]]},
    ],
)
def test_heads_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    assert_same(storage.from_bytes(headed()), FULL)
    with pytest.raises(WireError):
        storage.from_bytes(headed(**changes))


def test_shapes_that_no_tensor_has_are_refused() -> None:
    empty = storage.to_bytes(Memory(FID, "ef"))
    size = heads.head_size(empty[: heads.FRAME.size])
    head = json.loads(empty[heads.FRAME.size : size - heads.CRC.size])
    head["tensors"] = [["w", "float32", [0, 2**63, 2**63]]]
    text = json.dumps(head).encode()
    framed = heads.FRAME.pack(b"FLM1", len(text)) + text
    data = framed + heads.CRC.pack(zlib.crc32(framed)) + empty[size:]
    with pytest.raises(WireError, match="has the shape"):
        storage.from_bytes(data)


def test_deep_nesting_is_refused() -> None:
    text = b"[" * 200_000
    framed = heads.FRAME.pack(b"FLM1", len(text)) + text
    with pytest.raises(WireError, match="makes no sense"):
        storage.from_bytes(framed + heads.CRC.pack(zlib.crc32(framed)))


def test_a_head_alone_tells_the_state() -> None:
    newer = replace(FULL, seen=(2_000_000_000, 1), pending=None)
    head = heads.read_head(heads.to_head(newer, owner="node-1", ident="abc"))
    assert (head.owner, head.ident) == ("node-1", "abc")
    assert head.body_size == heads.CRC.size
    assert_same_state(head.state, newer)

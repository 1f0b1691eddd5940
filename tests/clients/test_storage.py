"""A memory survives Flower's Context, also through its protobuf bytes."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext

from clients import storage
from clients.turns import Memory
from fl_lowrank.errors import WireError

FULL = Memory(
    fid=bytes(range(16)),
    feedback="ef",
    epoch=2**64 - 1,
    seen=(1_790_000_000, 2**40),
    base=2**64 - 1,
    tensors={
        "w": torch.linspace(-1, 1, 12).reshape(3, 4),
        "scalar": torch.tensor(0.1),
        "empty": torch.zeros(0, 3),
        'odd "name"/é': torch.tensor([1e-300, torch.pi], dtype=torch.float64),
    },
    pending=(2**63 + 1, b"\x00\xff payload"),
    unsettled=2,
    codec={"w/q": torch.randn(4, 2, generator=torch.Generator().manual_seed(0))},
)


def context() -> Context:
    return Context(1, 2, {}, RecordDict(), {})


def assert_same(a: Memory, b: Memory) -> None:
    for tensors, others in ((a.tensors, b.tensors), (a.codec, b.codec)):
        assert list(tensors) == list(others)
        for name, value in tensors.items():
            assert others[name].dtype == value.dtype
            assert torch.equal(others[name], value)
    for field in ("fid", "feedback", "epoch", "seen", "base", "pending", "unsettled"):
        assert getattr(a, field) == getattr(b, field)


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


def test_a_fresh_context_holds_no_memory() -> None:
    assert storage.load(context()) is None


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

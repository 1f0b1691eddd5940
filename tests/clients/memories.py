"""Memories to keep, and how to compare them."""

from __future__ import annotations

import torch
from flwr.app import Context, RecordDict

from clients.turns import Memory

FID = bytes(range(16))
OTHER_FID = bytes(range(1, 17))
NODE = 7


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FULL = Memory(
    fid=FID,
    feedback="ef",
    epoch=2**64 - 1,
    seen=(1_790_000_000, 2**40),
    base=2**64 - 1,
    tensors={
        "w": torch.linspace(-1, 1, 12).reshape(3, 4),
        "scalar": torch.tensor(0.1),
        "empty": torch.zeros(0, 3),
        'odd "name"/é': torch.tensor([1e-300, torch.pi], dtype=torch.float64),
        "short": numbers(5).bfloat16(),
        "half": numbers(3).half(),
        "transposed": numbers(4, 3).T,
    },
    pending=(2**63 + 1, b"\x00\xff payload"),
    unsettled=2,
    gave_up=True,
    codec={"w/q": numbers(4, 2)},
)


def context(partition: object = None) -> Context:
    config = {} if partition is None else {"partition-id": partition}
    return Context(1, NODE, config, RecordDict(), {})


def assert_same(a: Memory | None, b: Memory | None) -> None:
    assert a is not None
    assert b is not None
    for tensors, others in ((a.tensors, b.tensors), (a.codec, b.codec)):
        assert list(tensors) == list(others)
        for name, value in tensors.items():
            assert others[name].dtype == value.dtype
            assert torch.equal(others[name], value)
    assert_same_state(a, b)
    assert a.pending == b.pending


def assert_same_state(a: Memory | None, b: Memory | None) -> None:
    assert a is not None
    assert b is not None
    for field in ("fid", "feedback", "epoch", "seen", "base", "unsettled", "gave_up"):
        assert getattr(a, field) == getattr(b, field), field
    assert (a.pending or (0,))[0] == (b.pending or (0,))[0]

"""The head of what goes down: it comes back, and nothing else is read."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fl_lowrank import envelope
from fl_lowrank.broadcast import MAX_LINKS, Broadcast, Link
from fl_lowrank.errors import VersionError, WireError

LINKS = (Link(2**64 - 1, b"first"), Link(7, b""), Link(1, b"third"))
SENT = Broadcast(3, 2**40, links=LINKS, step=b"step", exact=b"exact")
WHOLE = Broadcast(3, 12, is_whole=True, step=b"step")
HEAD_BYTES = 38 + 3 * 16 + 4


@pytest.mark.parametrize("sent", [SENT, WHOLE, Broadcast(1, 0)])
def test_what_is_written_is_read(sent: Broadcast) -> None:
    assert Broadcast.unpack(sent.pack()) == sent


def test_the_head_costs_little() -> None:
    assert len(SENT.pack()) == HEAD_BYTES + len(b"firstthirdstepexact")


def test_every_cut_is_refused() -> None:
    data = SENT.pack()
    for size in range(len(data)):
        with pytest.raises(WireError):
            Broadcast.unpack(data[:size])
    with pytest.raises(WireError, match="left over"):
        Broadcast.unpack(data + b"\0")


def test_every_flipped_bit_of_the_head_is_refused() -> None:
    data = SENT.pack()
    for place in range(8 * HEAD_BYTES):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(WireError):
            Broadcast.unpack(bytes(changed))


def test_what_makes_no_sense_is_refused() -> None:
    many = replace(SENT, links=LINKS[:1] * (MAX_LINKS + 1))
    for sent in (replace(SENT, is_whole=True), many):
        with pytest.raises(WireError, match="make no sense"):
            Broadcast.unpack(sent.pack())
    fits = replace(SENT, links=LINKS[:1] * MAX_LINKS)
    assert Broadcast.unpack(fits.pack()) == fits


def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = SENT.pack()
    monkeypatch.setattr(envelope, "VERSION", 9)
    with pytest.raises(VersionError, match="expected version 9, found 1"):
        Broadcast.unpack(data)


def test_strange_bytes_are_refused_without_room_for_what_they_announce() -> None:
    rng = random.Random(0)
    for _ in range(5_000):
        with pytest.raises(WireError):
            Broadcast.unpack(rng.randbytes(rng.randrange(200)))
    # 2^64 - 1 bytes of a step, with a right checksum
    head = bytearray(Broadcast(1, 0).pack()[:-4])
    head[22:30] = b"\xff" * 8
    with pytest.raises(WireError, match="truncated"):
        Broadcast.unpack(envelope.sealed(bytes(head)))

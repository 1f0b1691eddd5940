from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lowrank.codecs.bitstream import BitReader, BitWriter
from fl_lowrank.errors import WireError

CODES = st.one_of(
    st.tuples(st.just("fixed"), st.integers(0, 255), st.integers(8, 12)),
    st.tuples(st.just("gamma"), st.integers(1, 2**64 - 1), st.just(0)),
    st.tuples(st.just("rice"), st.integers(0, 300), st.integers(0, 8)),
)


@given(st.lists(CODES))
def test_round_trip(codes: list[tuple[str, int, int]]) -> None:
    writer = BitWriter()
    for name, value, width in codes:
        args = (value,) if name == "gamma" else (value, width)
        getattr(writer, name)(*args)
    reader = BitReader(writer.to_bytes())
    for name, value, width in codes:
        args = () if name == "gamma" else (width,)
        assert getattr(reader, name)(*args) == value
    reader.finish()


def test_bytes_are_pinned() -> None:
    writer = BitWriter()
    writer.gamma(5)  # 00101
    writer.rice(9, 2)  # 001 01
    writer.fixed(3, 4)  # 0011
    assert writer.to_bytes() == bytes([0b00101001, 0b01001100])


@pytest.mark.parametrize(
    ("data", "code", "args"),
    [
        (b"", "fixed", (1,)),
        (b"\xff", "fixed", (9,)),
        (b"\x00", "gamma", ()),
        (b"\x01", "gamma", ()),
        (bytes(8) + b"\xff" * 9, "gamma", ()),
        (b"\x00\x00", "rice", (0,)),
    ],
)
def test_cut_or_overlong_codes_are_refused(
    data: bytes, code: str, args: tuple[int, ...]
) -> None:
    reader = BitReader(data)
    with pytest.raises(WireError, match="BitReader"):
        getattr(reader, code)(*args)


@pytest.mark.parametrize("data", [b"\x81", b"\x80\x00"])
def test_rest_is_refused(data: bytes) -> None:
    reader = BitReader(data)
    assert reader.fixed(1) == 1
    with pytest.raises(WireError, match="expected the end"):
        reader.finish()


def read_until_the_end(reader: BitReader) -> None:
    while True:
        reader.gamma()
        reader.rice(3)


def test_random_bytes_end_in_a_wire_error() -> None:
    rng = np.random.default_rng(3)
    for _ in range(2000):
        reader = BitReader(rng.bytes(int(rng.integers(0, 20))))
        with pytest.raises(WireError, match="BitReader"):
            read_until_the_end(reader)

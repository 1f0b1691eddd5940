from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lowrank.codecs.varint import read_varint, unzigzag, write_varint, zigzag
from fl_lowrank.errors import InputError, WireError


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_round_trip_in_any_place(value: int, before: bytes, after: bytes) -> None:
    coded = write_varint(value)
    assert len(coded) == max(1, -(-value.bit_length() // 7))
    end = len(before) + len(coded)
    assert read_varint(before + coded + after, len(before)) == (value, end)


@pytest.mark.parametrize(
    ("value", "coded"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_bytes_are_pinned(value: int, coded: str) -> None:
    assert write_varint(value).hex() == coded


@pytest.mark.parametrize("value", [-1, 2**64])
def test_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(InputError, match="0 <= value"):
        write_varint(value)


@pytest.mark.parametrize(
    ("coded", "reason"),
    [
        ("", "no end"),
        ("80", "no end"),
        ("ff" * 11, "no end"),
        ("8000", "shortest"),
        ("ac8200", "shortest"),
        ("ffffffffffffffffff02", "64 bits"),
    ],
)
def test_malformed_is_refused(coded: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read_varint(bytes.fromhex(coded), 0)


def test_position_behind_the_end_is_refused() -> None:
    with pytest.raises(WireError, match="no end"):
        read_varint(b"\x01", 1)


def test_random_bytes_give_a_canonical_value_or_an_error() -> None:
    rng = np.random.default_rng(0)
    num_values = 0
    for _ in range(2000):
        data = rng.bytes(int(rng.integers(0, 12)))
        try:
            value, end = read_varint(data, 0)
        except WireError:
            continue
        num_values += 1
        assert write_varint(value) == data[:end]
    assert num_values > 500


@given(st.integers(-(2**63), 2**63 - 1))
def test_zigzag_round_trip(value: int) -> None:
    assert 0 <= zigzag(value) < 2**64
    assert unzigzag(zigzag(value)) == value


def test_zigzag_order() -> None:
    assert [zigzag(value) for value in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]

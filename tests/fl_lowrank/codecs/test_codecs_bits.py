from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lowrank.codecs.bits import (
    bit_length,
    decode_bits,
    encode_bits,
    pack_uints,
    unpack_equal_uints,
    unpack_uints,
)
from fl_lowrank.errors import InputError, WireError


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.booleans(), max_size=70))
def test_round_trip(flags: list[bool]) -> None:
    bits = torch.tensor(flags, dtype=torch.bool)
    data = encode_bits(bits)
    assert len(data) == -(-len(flags) // 8)
    decoded = decode_bits(data, len(flags))
    assert decoded.dtype == torch.bool
    assert decoded.tolist() == flags


@pytest.mark.parametrize(
    ("flags", "coded"), [([], ""), ([1], "01"), ([0, 1, 0, 0, 0, 0, 0, 1, 1], "8201")]
)
def test_bytes_are_pinned(flags: list[int], coded: str) -> None:
    assert encode_bits(torch.tensor(flags, dtype=torch.bool)).hex() == coded


def test_decoded_bits_are_writable() -> None:
    decoded = decode_bits(b"\x03", 3)
    decoded[2] = True
    assert decoded.all()


@pytest.mark.parametrize("count", [-1, 0, 8, 17])
def test_wrong_length_is_refused(count: int) -> None:
    with pytest.raises(WireError, match=r"expected -?\d+ bytes"):
        decode_bits(b"\x00\x00", count)


def test_padding_is_refused() -> None:
    with pytest.raises(WireError, match="zeros behind"):
        decode_bits(b"\x08", 3)


@pytest.mark.parametrize("bits", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.bool)])
def test_other_tensors_are_refused(bits: torch.Tensor) -> None:
    with pytest.raises(InputError, match="one-dimensional bool"):
        encode_bits(bits)


def test_mutations_give_bits_or_an_error(
    mutations: Callable[..., Iterable[bytes]],
) -> None:
    rng = np.random.default_rng(1)
    bits = torch.from_numpy(rng.random(101) < 0.5)
    num_errors = 0
    for data in mutations(encode_bits(bits), rng):
        try:
            assert decode_bits(data, 101).shape == (101,)
        except WireError:
            num_errors += 1
    assert num_errors > 500


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.data())
def test_uints_round_trip_in_their_own_widths(
    values: list[int], data: st.DataObject
) -> None:
    widths = [data.draw(st.integers(value.bit_length(), 64)) for value in values]
    packed = pack_uints(np.array(values, dtype=np.uint64), np.array(widths, dtype="u1"))
    whole = sum(width // 8 for width in widths)
    assert len(packed) == whole + -(-sum(width % 8 for width in widths) // 8)
    assert unpack_uints(packed, np.array(widths, dtype="u1")).tolist() == values


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 64))
def test_equal_widths_are_read_the_same(values: list[int], width: int) -> None:
    fitting = np.array([v & (1 << width) - 1 for v in values], dtype=np.uint64)
    packed = pack_uints(fitting, np.full(len(values), width, dtype=np.uint8))
    assert unpack_equal_uints(packed, width, len(values)).tolist() == fitting.tolist()
    for damaged in (packed + b"\0", packed[:-1]):
        if damaged != packed:
            with pytest.raises(WireError):
                unpack_equal_uints(damaged, width, len(values))


def test_uints_of_too_few_bytes_are_refused() -> None:
    with pytest.raises(WireError, match="at least 16 bytes"):
        unpack_uints(bytes(15), np.array([64, 64]))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 2**64 - 1)))
def test_bit_length_is_that_of_int(values: list[int]) -> None:
    lengths = bit_length(np.array(values, dtype=np.uint64))
    assert lengths.tolist() == [value.bit_length() for value in values]


@pytest.mark.parametrize("exponent", range(65))
def test_bit_length_beside_powers_of_two(exponent: int) -> None:
    values = [v for v in (2**exponent - 1, 2**exponent, 2**exponent + 1) if v < 2**64]
    lengths = bit_length(np.array(values, dtype=np.uint64))
    assert lengths.tolist() == [value.bit_length() for value in values]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bits_from_a_cuda_device() -> None:
    bits = torch.tensor([True, False, True])
    assert encode_bits(bits.cuda()) == encode_bits(bits)

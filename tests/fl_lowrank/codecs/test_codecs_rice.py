from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lowrank.codecs.rice import MAX_BITS, decode_rice, encode_rice
from fl_lowrank.errors import InputError, WireError

from .conftest import Mutate


@given(st.lists(st.integers(0, 2**12), max_size=60), st.integers(0, 27))
def test_round_trip(values: list[int], shift: int) -> None:
    numbers = torch.tensor(values, dtype=torch.int64) << shift
    assert torch.equal(decode_rice(encode_rice(numbers), len(values)), numbers)


@pytest.mark.parametrize("values", [[0], [2**MAX_BITS - 1], [0] * 1000, [1, 2**39]])
def test_ends_of_the_range(values: list[int]) -> None:
    numbers = torch.tensor(values)
    assert decode_rice(encode_rice(numbers), len(values)).tolist() == values


def test_bytes_are_pinned() -> None:
    # 9 = 2 * 4 + 1, 3 = 0 * 4 + 3, 6 = 1 * 4 + 2; unary 001 1 01, lowest bit first
    data = encode_rice(torch.tensor([9, 3, 6]))
    assert data == bytes([2, 0b10_11_01, 0b10_1_100])


@pytest.mark.parametrize("mean", [1.5, 10.0, 1e3, 1e6])
@pytest.mark.parametrize("count", [20, 2000])
def test_geometric_numbers_cost_what_theory_says(mean: float, count: int) -> None:
    """At most 1.56 bits above log2 of the mean: 200 or 20 messages, 5 sigma.

    A length has a standard deviation of less than 2 bits a number.
    """
    draws = np.random.default_rng(0)
    messages = 4000 // count
    sizes = [
        len(encode_rice(torch.from_numpy(draws.geometric(1 / mean, count) - 1)))
        for _ in range(messages)
    ]
    bits = 8 * sum(sizes) / (messages * count)
    overhead = 8 * 3 / count
    sigma = 2 / math.sqrt(messages * count)
    assert bits <= math.log2(mean) + 1.56 + overhead + 5 * sigma


def test_outliers_do_not_fill_the_memory() -> None:
    numbers = torch.zeros(10_000, dtype=torch.int64)
    numbers[5] = 2**39
    assert len(encode_rice(numbers)) < 60_000


@pytest.mark.parametrize("values", [[-1], [2**MAX_BITS]])
def test_numbers_out_of_range_are_refused(values: list[int]) -> None:
    with pytest.raises(InputError, match="encode_rice"):
        encode_rice(torch.tensor(values))


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\x00\x01", 0),
        (b"\x00", 1),  # no unary part
        (b"\x28\x00\x00\x00\x00\x00\x01", 1),  # 40 low bits
        (b"\xff\x01", 1),
        (b"\x02\x07\x01", 1),  # padding of the low bits
        (b"\x00\x03", 1),  # one number too many
        (b"\x00\x01", 2),  # one too few
        (b"\x00\x01\x00", 1),  # a byte behind the last number
        (b"\x27" + bytes(5) + b"\x04", 1),  # 2 * 2^39
    ],
)
def test_other_bytes_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(WireError):
        decode_rice(data, count)


def test_damage_is_refused_or_read(mutations: Mutate) -> None:
    draws = np.random.default_rng(1)
    data = encode_rice(torch.from_numpy(draws.geometric(0.01, 50)))
    refused = 0
    for damaged in mutations(data, draws):
        try:
            numbers = decode_rice(damaged, 50)
        except WireError:
            refused += 1
            continue
        assert numbers.shape == (50,)
        assert 0 <= int(numbers.min()) <= int(numbers.max()) < 2**MAX_BITS
    assert refused > 800

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_lowrank.codecs.indices import (
    announced_bytes,
    decode_index_sets,
    decode_indices,
    encode_indices,
)
from fl_lowrank.codecs.varint import write_varint
from fl_lowrank.errors import InputError, WireError

SIDE = 1024
UNIVERSE = SIDE * SIDE
RICE = 6  # first byte of a set in Golomb-Rice codes


def binomial_bytes(universe: int, count: int) -> float:
    """Bytes that name one of all sets with so many indices."""
    nats = (
        math.lgamma(universe + 1)
        - math.lgamma(count + 1)
        - math.lgamma(universe - count + 1)
    )
    return nats / math.log(2) / 8


def random_places(universe: int, count: int, seed: int = 0) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(universe, count, replace=False))


def check_round_trip(places: NDArray[np.int64], universe: int) -> bytes:
    indices = torch.from_numpy(places)
    data = encode_indices(indices, universe)
    decoded = decode_indices(data, universe)
    assert decoded.dtype == torch.int64
    assert torch.equal(decoded, indices)
    return data


def test_random_one_percent_costs_its_binomial() -> None:
    count = UNIVERSE // 100
    bound = binomial_bytes(UNIVERSE, count)
    assert round(bound) == 10_588
    data = check_round_trip(random_places(UNIVERSE, count), UNIVERSE)
    assert len(data) <= 1.005 * bound
    assert data[0] == RICE


@pytest.mark.parametrize("universe", [100, 10_000, UNIVERSE, 10_000_000])
@pytest.mark.parametrize(
    "fraction", [1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999]
)
def test_random_sets_cost_their_binomial_and_16_bytes(
    universe: int, fraction: float
) -> None:
    count = max(1, round(universe * fraction))
    data = check_round_trip(random_places(universe, count), universe)
    more = 1.005 if RICE in data[:2] else 1.0005  # perhaps of the complement
    assert len(data) <= more * binomial_bytes(universe, count) + 16


@pytest.mark.parametrize(
    ("name", "max_bytes"),
    [
        ("row", 24),
        ("column", 24),
        ("twenty rows", 110),
        ("three columns", 700),
        ("runs", 1100),
        ("first twentieth", 5000),
        ("all but a row", 25),
    ],
)
def test_clustered_sets_cost_far_less(name: str, max_bytes: int) -> None:
    rng = np.random.default_rng(0)
    side = np.arange(SIDE)
    rows = np.sort(rng.choice(SIDE, 20, replace=False))
    starts = rng.choice(UNIVERSE - 32, 400)
    places = {
        "row": 5 * SIDE + side,
        "column": 77 + SIDE * side,
        "twenty rows": (rows[:, None] * SIDE + side).ravel(),
        "three columns": (side[:, None] * SIDE + np.array([3, 100, 700])).ravel(),
        "runs": np.unique(starts[:, None] + np.arange(32)),
        "first twentieth": random_places(UNIVERSE // 20, UNIVERSE // 100),
        "all but a row": np.delete(np.arange(UNIVERSE), 5 * SIDE + side),
    }[name]
    assert 2 * max_bytes < binomial_bytes(UNIVERSE, len(places))
    assert len(check_round_trip(places, UNIVERSE)) <= max_bytes


@pytest.mark.parametrize("universe", [0, 1, 2, 8, 10_000_000])
def test_nothing_and_everything_cost_one_byte(universe: int) -> None:
    assert len(check_round_trip(np.arange(0), universe)) == 1
    assert len(check_round_trip(np.arange(universe), universe)) == 1


@pytest.mark.parametrize("universe", [2**31 + 1, 2**40, 2**53 + 1, 2**62 + 1])
def test_large_universes(universe: int) -> None:
    rng = np.random.default_rng(0)
    check_round_trip(np.unique(rng.integers(0, universe, 1000)), universe)
    check_round_trip(np.array([universe - 1]), universe)
    check_round_trip(np.array([0, universe - 1]), universe)


@settings(deadline=None)  # the machine may be busy
@given(st.sets(st.integers(0, 300)), st.integers(0, 50))
def test_round_trip_of_any_set(places: set[int], spare: int) -> None:
    universe = max(places, default=-1) + 1 + spare
    data = check_round_trip(np.array(sorted(places), dtype=np.int64), universe)
    assert len(data) <= 2 + -(-universe // 8)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(1, 10**6), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_round_trip_of_random_sets(universe: int, fraction: float, seed: int) -> None:
    count = min(int(fraction**4 * universe), 20_000)
    check_round_trip(random_places(universe, count, seed), universe)


PINNED = {
    "bitmap": (np.array([0, 2, 3, 9, 11, 12, 15]), 17),
    "random": (np.array(sorted({i**3 % 1009 for i in range(90)})), 1009),
    "random, sparse": (np.array(sorted({5**i % 100_003 for i in range(60)})), 100_003),
    "stream": (np.arange(100) * 64, 10_000),
    "complement": (np.delete(np.arange(1000), [17, 400, 401, 990]), 1000),
}


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("bitmap", "020d9a00"),
        (
            "random",
            "0652038065008abf2f3016d524223d5406f9b1f3666167654dbb4211f38b6f1b811227bd"
            "51f02c029ca5f2d32d3df236ac87e9029dd610",
        ),
        (
            "random, sparse",
            "063c0a01031363f3b012c6b3966e345af444295ee2d1b1d480e61a5cc775aa7f87eb61b5"
            "bf23ea53599eb064bc4282d37f12276c9bbf2ada6e1979809fa6e6000564342ce6a54541"
            "4e5a7f53ed6a9f67c27e742a0ff38c23a0de0086b805",
        ),
        ("stream", "0464427e049e259d8005a0a3026c011f"),
        ("complement", "0504040a00117e004c84"),
    ],
)
def test_bytes_are_pinned(name: str, coded: str) -> None:
    places, universe = PINNED[name]
    assert encode_indices(torch.from_numpy(places), universe).hex() == coded
    assert decode_indices(bytes.fromhex(coded), universe).tolist() == places.tolist()


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        (
            "random",
            "0352379952d67af0657918f74512988d396322b0a3d48956eec49010dec27fb6be9a8518"
            "486070ce2adbfc1fcaa00b1137da693b9713724f7d02",
        ),
        (
            "random, sparse",
            "033c61cc31a134d33aaa29495ec44881d1fc54f5cf0af50f35b387840b31bf3c6c7fa55d"
            "cee01b0338f22d68489f933ce55c8d619e6e41fdc040f1135f249e096614893766c44bc2"
            "c0a8d3e59de78b05825c9d509bb54200ab0291046e54fe293b",
        ),
    ],
)
def test_what_was_written_before_there_were_rice_codes_is_read(
    name: str, coded: str
) -> None:
    places, universe = PINNED[name]
    assert decode_indices(bytes.fromhex(coded), universe).tolist() == places.tolist()


@pytest.mark.parametrize("name", [*PINNED, "long gaps", "dense"])
def test_mutations_give_a_set_or_an_error(
    name: str, mutations: Callable[..., Iterable[bytes]]
) -> None:
    dense = np.delete(np.arange(1000), random_places(1000, 300))
    long_gaps = np.append(random_places(10**7, 500), 10**9 - 1)
    sets = {**PINNED, "dense": (dense, 1000), "long gaps": (long_gaps, 10**9)}
    places, universe = sets[name]
    coded = check_round_trip(places, universe)
    num_errors = 0
    for data in mutations(coded, np.random.default_rng(6)):
        try:
            decoded = decode_indices(data, universe).numpy()
        except WireError:
            num_errors += 1
            continue
        assert (np.diff(decoded) > 0).all()
        assert len(decoded) == 0 or 0 <= decoded[0] <= decoded[-1] < universe
    assert num_errors > 1000


@pytest.mark.parametrize(
    ("coded", "universe", "reason"),
    [
        ("", 10, "form from 0 to 6"),
        ("07", 10, "form from 0 to 6"),
        ("0000", 10, "form from 0 to 6"),
        ("0100", 10, "form from 0 to 6"),
        ("05", 10, "form from 0 to 6"),
        ("0500", 10, None),
        ("050500", 10, "not nested"),
        ("0201", 10, "expected 2 bytes"),
        ("020104", 10, "zeros behind"),
        ("030b", 10, "expected 1 to 9 indices, found 11"),
        ("0400", 10, "expected 1 to 9 indices, found 0"),
        ("0301", 0, "expected 1 to -1 indices"),
        ("06", 10, "expected an integer"),
        ("0601", 10, "expected 1 numbers with"),
        ("060b0001", 10, "expected 1 to 9 indices, found 11"),
        ("0601000004", 10, "expected places below 10"),
        ("06010203", 10, "expected 1 numbers with 2 low bits"),
        ("04010014", 10, "expected indices below 10, found 10"),
        ("04020005", 10, "expected gaps"),
        ("040200feffffffffffffffff01", 10, "expected gaps"),
    ],
)
def test_malformed_is_refused(coded: str, universe: int, reason: str | None) -> None:
    data = bytes.fromhex(coded)
    if reason is None:
        assert decode_indices(data, universe).tolist() == list(range(universe))
        return
    with pytest.raises(WireError, match=reason):
        decode_indices(data, universe)


@pytest.mark.parametrize(
    ("coded", "place"),
    [("06010001", 0), ("0601000002", 9), ("0601020301", 3), ("0601020302", 7)],
)
def test_rice_codes_by_hand(coded: str, place: int) -> None:
    assert decode_indices(bytes.fromhex(coded), 10).tolist() == [place]


def test_rice_codes_cannot_overflow() -> None:
    """Numbers of 2^39 - 1 that are far more in all than there are places."""
    count = 2**16
    low_bits = b"\xff" * (39 * count // 8)
    data = bytes([RICE]) + write_varint(count) + bytes([39]) + low_bits
    with pytest.raises(WireError, match="places below"):
        decode_indices(data + b"\xff" * (count // 8), 2**40)


def test_many_sets_are_read_as_each_alone() -> None:
    """Of several sizes, densities and forms, some of them damaged."""
    draws = np.random.default_rng(7)
    sizes = [
        (UNIVERSE, 10_486),
        (1000, 20),
        (1000, 21),
        (50, 25),
        (10**5, 10**4),
        (9, 0),
    ]
    sets = []
    for i in range(120):
        universe, count = sizes[i % len(sizes)]
        places = torch.from_numpy(random_places(universe, count, i))
        data = bytearray(encode_indices(places, universe))
        if i % 4 == 3:
            data[draws.integers(len(data))] ^= 1 << draws.integers(8)
        sets.append((bytes(data), universe))
    decoded = decode_index_sets(sets)
    for (data, universe), found in zip(sets, decoded, strict=True):
        assert announced_bytes(data, universe) <= 8 * universe
        if isinstance(found, WireError):
            with pytest.raises(WireError, match=re.escape(str(found))):
                decode_indices(data, universe)
        else:
            assert torch.equal(found, decode_indices(data, universe))
    assert 5 < sum(isinstance(found, WireError) for found in decoded) < 30
    assert decode_index_sets([]) == []


@pytest.mark.parametrize(
    "places", [[1, 1], [2, 1], [-1, 3], [0, 10], [0, 2**63 - 1, -(2**63) + 1, 5]]
)
def test_what_is_no_index_set_is_refused(places: list[int]) -> None:
    with pytest.raises(InputError, match="strictly increasing"):
        encode_indices(torch.tensor(places), 10)


@pytest.mark.parametrize(
    "indices", [torch.zeros(2), torch.zeros(1, 1).long(), torch.zeros(1).int()]
)
def test_other_tensors_are_refused(indices: torch.Tensor) -> None:
    with pytest.raises(InputError, match="one-dimensional int64"):
        encode_indices(indices, 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_indices_from_a_cuda_device() -> None:
    indices = torch.from_numpy(random_places(UNIVERSE, 1000))
    data = encode_indices(indices.cuda(), UNIVERSE)
    assert data == encode_indices(indices, UNIVERSE)

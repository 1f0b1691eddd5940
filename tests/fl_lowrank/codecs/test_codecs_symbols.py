from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_lowrank.codecs.alphabet import INT64_MAX, INT64_MIN
from fl_lowrank.codecs.symbols import decode_symbols, encode_symbols
from fl_lowrank.errors import InputError, WireError

INT64 = st.integers(INT64_MIN, INT64_MAX)
Sampler = Callable[[np.random.Generator, int], NDArray[np.float64]]

# Every stream spans fewer than 256 values.
EIGHT_BIT_STREAMS: dict[str, Sampler] = {
    **{
        f"gauss {sigma}": lambda rng, d, s=sigma: np.rint(rng.normal(0, s, d))
        for sigma in (0.1, 0.3, 1, 5, 20)
    },
    **{
        f"laplace {scale}": lambda rng, d, s=scale: np.rint(rng.laplace(0, s, d)).clip(
            -127, 127
        )
        for scale in (0.2, 1, 12)
    },
    **{
        f"geometric {p}": lambda rng, d, p=p: rng.geometric(p, d).clip(max=250)
        for p in (0.9, 0.5, 0.1)
    },
    "pareto": lambda rng, d: np.floor(rng.pareto(1, d) + 1).clip(max=255),
    "student": lambda rng, d: np.rint(5 * rng.standard_t(3, d)).clip(-128, 127),
    "heavier student": lambda rng, d: np.rint(3 * rng.standard_t(1.5, d)).clip(
        -128, 127
    ),
    "zipf": lambda rng, d: rng.zipf(1.5, d).clip(max=255),
    "uniform": lambda rng, d: rng.integers(0, 256, d),
    "odd": lambda rng, d: 2 * rng.integers(0, 128, d) + 1,
    "far pair": lambda rng, d: 255 * rng.integers(0, 2, d),
    "two bells": lambda rng, d: np.rint(rng.normal(0, 3, d)) + rng.choice([-60, 60], d),
    "spike and bell": lambda rng, d: np.where(
        rng.random(d) < 0.5, 0, np.rint(rng.normal(0, 20, d))
    ),
    "sparse signs": lambda rng, d: rng.choice([-1, 0, 1], d, p=[0.001, 0.998, 0.001]),
}


def entropy_bytes(symbols: NDArray[np.int64]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float(counts @ np.log2(counts.sum() / counts)) / 8


def check_round_trip(symbols: NDArray[np.int64]) -> bytes:
    data = encode_symbols(torch.from_numpy(symbols))
    decoded = decode_symbols(data, len(symbols))
    assert decoded.dtype == torch.int64
    assert torch.equal(decoded, torch.from_numpy(symbols))
    return data


@pytest.mark.parametrize("count", [1000, 10_000, 1_000_000])
@pytest.mark.parametrize("name", EIGHT_BIT_STREAMS)
def test_size_is_within_3_percent_and_64_bytes_of_the_entropy(
    name: str, count: int
) -> None:
    rng = np.random.default_rng(len(name) + count)
    symbols = EIGHT_BIT_STREAMS[name](rng, count).astype(np.int64)
    assert int(symbols.max()) - int(symbols.min()) < 256
    data = check_round_trip(symbols)
    assert len(data) <= 1.03 * entropy_bytes(symbols) + 64


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT_BIT_STREAMS)
def test_size_of_ten_million(name: str) -> None:
    rng = np.random.default_rng(7)
    symbols = EIGHT_BIT_STREAMS[name](rng, 10_000_000).astype(np.int64)
    data = check_round_trip(symbols)
    assert len(data) <= 1.001 * entropy_bytes(symbols) + 200


def test_ten_million_zeros_cost_two_bytes() -> None:
    zeros = torch.zeros(10_000_000, dtype=torch.int64)
    data = encode_symbols(zeros)
    assert data.hex() == "0000"
    assert torch.equal(decode_symbols(data, len(zeros)), zeros)


def test_one_huge_value_among_a_million_zeros() -> None:
    symbols = np.zeros(1_000_000, dtype=np.int64)
    symbols[333_333] = -(2**62)
    assert len(check_round_trip(symbols)) <= 24


@pytest.mark.parametrize(("shape", "excess"), [(1.0, 0.005), (0.5, 0.02)])
def test_heavy_tails_need_no_table_of_their_own(shape: float, excess: float) -> None:
    rng = np.random.default_rng(0)
    magnitudes = np.floor(rng.pareto(shape, 1_000_000) + 1).clip(max=2.0**62)
    symbols = magnitudes.astype(np.int64) * rng.choice([-1, 1], 1_000_000)
    data = check_round_trip(symbols)
    assert len(data) <= (1 + excess) * entropy_bytes(symbols)


@pytest.mark.parametrize("sigma", [1e3, 1e6, 1e15])
def test_wide_bells_cost_at_most_3_percent_over_their_law(sigma: float) -> None:
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.normal(0, sigma, 20_000)).astype(np.int64)
    law_bytes = 20_000 * np.log2(sigma * np.sqrt(2 * np.pi * np.e)) / 8
    assert len(check_round_trip(symbols)) <= 1.03 * law_bytes


@pytest.mark.parametrize(
    "symbols",
    [
        [INT64_MIN, INT64_MAX],
        [INT64_MAX] * 99 + [INT64_MIN],
        [INT64_MIN] * 999 + [INT64_MIN + 1],
        [INT64_MAX] * 999 + [INT64_MAX - 4097],
        [0] * 500 + [INT64_MIN, -1, 1, INT64_MAX] + [0] * 500,
        [-(2**62), 2**62] * 500,
        [2**62] * 500 + [2**62 + 10_000] * 500,
    ],
)
def test_extreme_values(symbols: list[int]) -> None:
    check_round_trip(np.array(symbols, dtype=np.int64))


def test_nothing_beats_plain_bits_on_random_bits() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.integers(INT64_MIN, INT64_MAX, 1000)
    assert len(check_round_trip(symbols)) <= 8 * 1000 + 11


@settings(deadline=None)  # the machine may be busy
@given(st.lists(INT64 | st.integers(-3, 3), max_size=100))
def test_round_trip_of_any_integers(symbols: list[int]) -> None:
    data = check_round_trip(np.array(symbols, dtype=np.int64))
    assert len(data) <= 1 + 10 * len(symbols)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(-100, 100), min_size=1, max_size=50))
def test_few_small_symbols_cost_three_bytes_beside_their_bits(
    symbols: list[int],
) -> None:
    width = (max(symbols) - min(symbols)).bit_length()
    data = check_round_trip(np.array(symbols, dtype=np.int64))
    assert len(data) <= 3 + -(-width * len(symbols) // 8)


@settings(deadline=None)  # the machine may be busy
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3000),
    width=st.integers(0, 62),
    power=st.floats(0.3, 6),
)
def test_round_trip_of_random_streams(
    seed: int, count: int, width: int, power: float
) -> None:
    rng = np.random.default_rng(seed)
    scale = 2.0 ** (width * rng.random(count) ** power)
    check_round_trip(np.rint(rng.choice([-1, 1], count) * scale).astype(np.int64))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
)
def test_every_integer_dtype(dtype: torch.dtype) -> None:
    symbols = torch.arange(100, dtype=dtype)[::3]
    assert torch.equal(decode_symbols(encode_symbols(symbols), 34), symbols.long())


@pytest.mark.parametrize(
    "symbols",
    [torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.zeros(2, 2).long()],
)
def test_other_tensors_are_refused(symbols: torch.Tensor) -> None:
    with pytest.raises(InputError, match="one-dimensional integer"):
        encode_symbols(symbols)


PINNED = {
    "empty": [],
    "constant": [-3] * 1000,
    "fixed": [5, 6, 7, 4],
    "varints": [0, 0, 0, 0, 10_000],
    "ans": [0, 1, -1, 0, 0, 0, 2, 0, 0, -40] * 30,
}


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        ("empty", ""),
        ("constant", "0005"),
        ("fixed", "020839"),
        ("varints", "4100000000a09c01"),
        (
            "ans",
            "424f0805798262109862c0846a72dbc66a5c044af121c407c2bceeb9c0ebe51fffa84a42"
            "13779a3dd224f466b746835a708c6b092a59e43b7898539a1b1fba566c39890d03a57868"
            "c3373dc1e16514fb09",
        ),
    ],
)
def test_bytes_are_pinned(name: str, coded: str) -> None:
    symbols = torch.tensor(PINNED[name], dtype=torch.int64)
    assert encode_symbols(symbols).hex() == coded
    assert torch.equal(decode_symbols(bytes.fromhex(coded), len(symbols)), symbols)


@pytest.mark.parametrize("name", ["fixed", "varints", "ans", "tails", "wide"])
def test_mutations_give_symbols_or_an_error(
    name: str, mutations: Callable[..., Iterable[bytes]]
) -> None:
    rng = np.random.default_rng(5)
    tails = (rng.standard_cauchy(500) * 1e9).astype(np.int64)
    wide = np.concatenate([tails, [INT64_MIN, INT64_MAX]])
    streams = {name: np.array(PINNED[name]) for name in ("fixed", "varints", "ans")}
    symbols = {**streams, "tails": tails, "wide": wide}[name]
    num_errors = 0
    for data in mutations(check_round_trip(symbols), rng):
        for count in (len(symbols), len(symbols) + 1):
            try:
                assert decode_symbols(data, count).shape == (count,)
            except WireError:
                num_errors += 1
    assert num_errors > 2000


@pytest.mark.parametrize(
    ("coded", "count", "reason"),
    [
        ("", 1, "expected bytes"),
        ("0000", 0, "expected bytes"),
        ("0000", -1, "expected bytes"),
        ("43", 1, "mode 0 to 66"),
        ("000000", 5, "expected 0 bytes"),
        ("4100", 65, "at most 64 varints"),
        ("410000", 1, "1 more bytes"),
        ("01feffffffffffffffff0101", 1, "64-bit integers"),
        ("4200ffffffff0f", 100, "expected a table"),
    ],
)
def test_malformed_is_refused(coded: str, count: int, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_symbols(bytes.fromhex(coded), count)


@pytest.mark.parametrize("change", [-999, -1, 1, 1000])
def test_wrong_count_of_coded_symbols_is_refused(change: int) -> None:
    rng = np.random.default_rng(0)
    symbols = torch.from_numpy(rng.integers(0, 5, 1000))
    with pytest.raises(WireError, match="expected exactly"):
        decode_symbols(encode_symbols(symbols), 1000 + change)


def test_every_truncation_and_every_added_byte_is_refused() -> None:
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.normal(0, 2, 1000)).astype(np.int64)
    data = check_round_trip(symbols)
    for size in range(len(data)):
        with pytest.raises(WireError):
            decode_symbols(data[:size], 1000)
    for byte in range(256):
        with pytest.raises(WireError):
            decode_symbols(data + bytes([byte]), 1000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_symbols_from_a_cuda_device() -> None:
    symbols = torch.arange(1000) % 7
    assert encode_symbols(symbols.cuda()) == encode_symbols(symbols)

"""sketch: exact sums without decoding, and what happens when they do not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Exact, Sketch, TopK
from fl_lowrank.compressors import peeling, sketch_parts
from fl_lowrank.compressors.peeling import Edges, enough_cells, folded, hashed
from fl_lowrank.errors import InputError, SettingError, SketchError, WireError
from fl_lowrank.types import Payload
from tests.fl_lowrank.compressing import error, send, signs

D = 20_000


def message(compressor: Sketch, x: Tensor) -> Payload:
    """What a server reads."""
    payload, _ = compressor.encode(x, {}, fll.rng.stream(0))
    return fll.unpack(fll.pack(payload))


def normal(key: int, numel: int = D) -> Tensor:
    return fll.rng.stream(30, key).normal(numel)


def summed(payloads: Sequence[Payload]) -> Tensor:
    """Decode each, and sum in float64: every sum here is exact in it."""
    out = torch.zeros(payloads[0].shape, dtype=torch.float64)
    for payload in payloads:
        out += fll.peel(payload).values
    return out


# --- one message ----------------------------------------------------------------------


@pytest.mark.parametrize(("k", "d"), [(1, 2000), (7, 1009), (500, 1009), (40, 40)])
@pytest.mark.parametrize("magnitude", [1e-44, 1e-40, 1.0, 3e38])
def test_it_keeps_what_topk_keeps(k: int, d: int, magnitude: float) -> None:
    """At 24 bits as good as topk, whose bound equal magnitudes attain."""
    for x in (magnitude * signs(d), (normal(0, d).clamp(-1, 1) * magnitude)):
        y, best = send(Sketch(k=k), x), send(TopK(k=k), x)
        assert torch.equal(y != 0, best != 0)
        assert error(x, y) == pytest.approx(error(x, best), abs=1e-12)
    guarantee = Sketch(k=k).guarantee((d,))
    assert isinstance(guarantee, Contractive)
    assert guarantee.delta == pytest.approx(k / d, rel=1e-10)


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 24, 32])
def test_rounding_is_off_by_half_a_unit_of_the_largest(bits: int) -> None:
    """Attained: the largest is a power of two, the others midway between levels."""
    x = torch.full((900,), 0.5**bits, dtype=torch.float64)
    x[1::2] += 2 * 0.5**bits
    x[0] = 1.0
    y = send(Sketch(fraction=1.0, bits=bits), x)
    assert y[0] == 1.0
    assert torch.equal((y - x)[1:].abs(), torch.full((899,), 0.5**bits).double())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=120),
    st.integers(1, 12),
    st.integers(1, 60),
)
def test_error_is_bounded_for_any_vector(
    values: list[float], bits: int, k: int
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    if x.any():
        compressor = Sketch(k=k, bits=bits)
        guarantee = compressor.guarantee(tuple(x.shape))
        assert isinstance(guarantee, Contractive)
        assert error(x, send(compressor, x)) <= (1 - guarantee.delta) * (1 + 1e-12)


def test_guarantee_of_coarse_rounding_is_that_of_one_entry() -> None:
    assert Sketch(k=4, bits=1).guarantee((100,)) == Contractive(0.75 / 100)
    assert Sketch(k=4).guarantee((0,)) == Exact()


def test_entries_that_round_to_nothing_are_not_announced() -> None:
    x = torch.zeros(5000)
    x[10], x[20] = 1.0, 1e-9
    assert message(Sketch(k=2), x).tensor("support").tolist() == [10]


def tied(numel: int, num_cells: int, seed: int) -> Tensor:
    """Two positions with the same three cells."""
    cells = hashed(torch.arange(numel), num_cells, seed).cells.to(torch.int64)
    code = (cells[0] * num_cells + cells[1]) * num_cells + cells[2]
    order = code.argsort(stable=True)
    same = (code[order][1:] == code[order][:-1]).nonzero()[0, 0]
    return order[same : same + 2].sort().values


def test_entries_that_the_hash_ties_travel_beside_the_cells() -> None:
    """A message for itself is decoded whatever its positions; sums of them too."""
    compressor = Sketch(k=2)
    pair = tied(3000, compressor.num_cells(3000), 0)
    x, other = torch.zeros(3000), torch.zeros(3000)
    x[pair] = torch.tensor([3.0, -1.5])
    other[pair[0]], other[7] = 0.25, 8.0
    payloads = [message(compressor, x), message(compressor, other)]
    assert payloads[0].tensor("support").numel() == 0
    assert torch.equal(payloads[0].tensor("stash"), pair)
    assert payloads[1].tensor("stash").numel() == 0
    assert torch.equal(fll.decode(payloads[0]), x)
    total = fll.add([payloads[0], *payloads, payloads[0]])
    total = fll.unpack(fll.pack(total))
    assert torch.equal(total.tensor("stash"), pair)
    assert torch.equal(fll.decode(total), 3 * x + other)


def test_small_tensors_have_one_cell_for_each_entry() -> None:
    compressor = Sketch(fraction=0.5)
    for d in (0, 1, 60, 180):
        payload = message(compressor, normal(1, d))
        assert payload.tensor("cells").numel() == d
        assert payload.tensor("support").numel() == 0
    assert compressor.num_cells(1000) == enough_cells(500) == 714


def test_cells_come_from_the_expected_union() -> None:
    compressor = Sketch(fraction=0.01, capacity=0.1)
    assert compressor.num_cells(10**6) == 130_065 >= 1.3 * 100_000 + 64
    assert Sketch(k=1000).num_cells(10**6) == 1365 == enough_cells(1000)


# --- sums -----------------------------------------------------------------------------


def clients(count: int = 8, numel: int = D) -> list[Tensor]:
    """Related updates, of scales that differ."""
    common = normal(99, numel)
    return [(common + normal(c, numel)) * 3.7**c for c in range(count)]


COMPRESSOR = Sketch(fraction=0.02, capacity=0.12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_sum_decodes_to_the_sum_of_what_each_decodes_to(
    dtype: torch.dtype,
) -> None:
    """Every bit of it, though each client has a scale of its own."""
    xs = [x.to(dtype) for x in clients(6)]
    payloads = [message(COMPRESSOR, x) for x in xs]
    assert len({int(p.tensor("head")[1]) for p in payloads}) > 3
    total = fll.add(payloads)
    peeled = fll.peel(fll.unpack(fll.pack(total)))
    assert peeled.unpeeled.numel() == 0
    assert torch.equal(peeled.values, summed(payloads))
    assert fll.decode(total).dtype == dtype
    assert torch.equal(fll.decode(total), summed(payloads).to(dtype))


def test_sums_of_sums_in_any_order_are_the_same_bytes() -> None:
    a, b, c, d = (message(COMPRESSOR, x) for x in clients(4))
    flat = fll.pack(fll.add([a, b, c, d]))
    assert fll.pack(fll.add([fll.add([d, b]), fll.add([a, c])])) == flat
    assert fll.pack(fll.add([fll.add([fll.add([c]), d]), b, a])) == flat


def test_positions_are_merged_even_where_values_cancel() -> None:
    x = clients(1)[0]
    one, other = message(COMPRESSOR, x), message(COMPRESSOR, -x)
    total = fll.add([one, other])
    assert torch.equal(total.tensor("support"), one.tensor("support"))
    assert not total.tensor("cells").any()
    assert not fll.decode(total).any()


@pytest.mark.parametrize("magnitude", [1e-300, 1e-30, 1e300])
def test_zero_is_neutral_at_every_scale(magnitude: float) -> None:
    x = clients(1)[0].double() * magnitude
    one, zero = message(COMPRESSOR, x), message(COMPRESSOR, torch.zeros_like(x))
    total = fll.add([zero, one, zero])
    assert fll.pack(total) == fll.pack(one)
    assert torch.equal(fll.decode(fll.add([zero, zero])), torch.zeros_like(x))


def test_small_tensors_are_summed_too() -> None:
    xs = [normal(c, 90) for c in range(9)]
    payloads = [message(Sketch(fraction=0.25), x) for x in xs]
    total = fll.add(payloads)
    assert torch.equal(fll.peel(total).values, summed(payloads))


def test_accumulate_decodes_each_sum_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of equal weight and settings are summed first; others stand alone."""
    payloads = [message(COMPRESSOR, x) for x in clients(6)]
    expected = summed(payloads[:4]) - 2.0 * summed(payloads[4:])
    calls = []
    peel = sketch_parts.peel

    def counted(edges: Edges, cells: Tensor) -> peeling.Peeling:
        calls.append(cells.numel())
        return peel(edges, cells)

    monkeypatch.setattr(sketch_parts, "peel", counted)
    out = torch.zeros(D, dtype=torch.float64)
    fll.accumulate(payloads, [1.0] * 4 + [-2.0] * 2, out)
    assert torch.equal(out, expected)
    assert len(calls) == 2


def test_accumulate_takes_messages_of_different_settings() -> None:
    x = clients(1)[0]
    settings = (COMPRESSOR, Sketch(k=50), Sketch(k=50, seed=1), Sketch(k=50, bits=8))
    payloads = [message(c, x) for c in settings]
    out = torch.zeros(D, dtype=torch.float64)
    fll.accumulate(payloads, [1.0] * 4, out)
    assert torch.equal(out, summed(payloads))


# --- sums that do not fit -------------------------------------------------------------


def test_too_many_entries_are_reported_with_numbers() -> None:
    """Below 1.2 cells for an entry nothing is complete, and nothing is hidden."""
    xs = [normal(c, 10**5) for c in range(8)]
    payloads = [message(Sketch(fraction=0.02, capacity=0.13), x) for x in xs]
    total = fll.add(payloads)
    union = total.tensor("support").numel()
    cells = total.tensor("cells").numel()
    assert union > 10**4
    assert cells < 1.2 * union
    with pytest.raises(SketchError, match="set capacity=") as caught:
        fll.decode(total)
    peeled = fll.peel(total)
    assert (caught.value.union, caught.value.cells) == (union, cells)
    assert caught.value.unpeeled == peeled.unpeeled.numel() > union // 4
    assert f"{peeled.unpeeled.numel()} of {union}" in str(caught.value)
    assert f"{enough_cells(union)} suffice" in str(caught.value)
    off = peeled.values != summed(payloads)
    assert set(off.nonzero().reshape(-1).tolist()) <= set(peeled.unpeeled.tolist())
    out = torch.zeros(10**5, dtype=torch.float64)
    with pytest.raises(SketchError):
        fll.accumulate(payloads, [1.0] * 8, out)


def test_the_capacity_that_the_error_names_suffices() -> None:
    xs = [normal(c) for c in range(8)]
    with pytest.raises(SketchError, match="capacity=") as caught:
        fll.decode(fll.add([message(Sketch(fraction=0.02), x) for x in xs]))
    capacity = float(str(caught.value).partition("capacity=")[2].partition(";")[0])
    compressor = Sketch(fraction=0.02, capacity=capacity)
    payloads = [message(compressor, x) for x in xs]
    assert torch.equal(fll.peel(fll.add(payloads)).values, summed(payloads))


def test_an_unlucky_union_is_told_to_take_another_seed() -> None:
    compressor = Sketch(k=2)
    messages, pair = [], tied(3000, compressor.num_cells(3000), 0)
    for position in pair:
        x = torch.zeros(3000)
        x[position] = 1.0
        messages.append(message(compressor, x))
    with pytest.raises(SketchError, match="choose another seed"):
        fll.decode(fll.add(messages))


def test_estimates_are_right_on_average() -> None:
    """Over 200 seeds, 5 standard errors for each of 3 numbers: 2e-6 by chance."""
    x = (8 * signs(200)).to(torch.int64)
    rows = []
    for seed in range(200):
        edges = hashed(torch.arange(200), 180, seed)
        peeled = peeling.peel(edges, folded(edges, x, 180))
        assert peeled.left.numel() > 20
        y = peeled.values
        y[peeled.left] = peeling.estimates(edges.rows(peeled.left), peeled.rest)
        rows.append(y - x)
    errors = torch.stack(rows).double()
    assert float(errors.square().mean()) > 1.0
    for direction in (torch.ones(200), x, signs(200, key=1)):
        along = errors @ direction.double()
        assert abs(along.mean()) < 5 * along.std() / math.sqrt(200)


def test_what_cannot_be_summed_is_refused() -> None:
    x = clients(1)[0]
    one = message(COMPRESSOR, x)
    with pytest.raises(InputError, match="at least one payload"):
        fll.add([])
    for what, other in {
        "seed": message(Sketch(fraction=0.02, capacity=0.12, seed=1), x),
        "cells": message(Sketch(fraction=0.02), x),
        "payload 1 a sketch of torch.float64": message(COMPRESSOR, x.double()),
        "payload 1 a sparse": TopK(k=3).encode(x, {}, fll.rng.stream(0))[0],
    }.items():
        with pytest.raises(WireError, match=what):
            fll.add([one, other])
    sparse = TopK(k=3).encode(x, {}, fll.rng.stream(0))[0]
    with pytest.raises(WireError, match="kind sparse cannot be summed undecoded"):
        fll.add([sparse, sparse])
    with pytest.raises(WireError, match="expected a payload of sketch"):
        fll.peel(sparse)


def test_scales_too_far_apart_are_refused() -> None:
    """Never a wrapped integer: 24 bits leave room for factors up to 2^38 or so."""
    x = clients(1)[0].double()
    small = message(COMPRESSOR, x)
    for factor in (2.0**20, 2.0**36):
        near = [small, message(COMPRESSOR, x * factor)]
        assert torch.equal(fll.peel(fll.add(near)).values, summed(near))
    for factor in (2.0**42, 1e100, 1e300):
        far = [small, message(COMPRESSOR, x * factor), small]
        with pytest.raises(WireError, match=r"payload 1 reaches .* leave it out"):
            fll.add(far)


def test_a_long_chain_made_by_hand_is_left_half_done() -> None:
    """One entry a round, so that a stranger could keep a server busy."""
    count = 4 * peeling.MAX_ROUNDS
    row = torch.arange(count)
    cells = torch.stack(
        (row // 2, (row + 1) // 2 + count, torch.full_like(row, 2 * count))
    )
    edges = Edges(cells.to(torch.int32), torch.ones_like(cells, dtype=torch.int8))
    values = row + 1
    peeled = peeling.peel(edges, folded(edges, values, 3 * count))
    assert peeled.rounds == peeling.MAX_ROUNDS
    left = torch.ones(count, dtype=torch.bool)
    left[peeled.values > 0] = False
    assert torch.equal(peeled.left, left.nonzero().reshape(-1))
    assert torch.equal(peeled.values[~left], values[~left])
    assert 0 < peeled.left.numel() <= 2 * peeling.MAX_ROUNDS


# --- the hash -------------------------------------------------------------------------


def test_cells_and_signs_never_change() -> None:
    """They are part of the wire format."""
    edges = hashed(torch.tensor([0, 1, 10**6, 2**31]), 300, 7)
    assert edges.cells.tolist() == [
        [29, 24, 84, 52],
        [114, 120, 192, 155],
        [250, 271, 245, 234],
    ]
    assert edges.signs.tolist() == [[-1, -1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1]]


def test_cells_are_uniform_in_their_sub_table() -> None:
    """Chi-square over 50 cells, 3 tables, and signs: 5 sigma, 4e-6 in all."""
    n, size = 100_000, 50
    edges = hashed(torch.arange(n), 3 * size, 1)
    for table, (cells, drawn) in enumerate(zip(edges.cells, edges.signs, strict=True)):
        counts = torch.bincount(cells - table * size, minlength=size).double()
        assert counts.numel() == size
        chi = float(((counts - n / size) ** 2 / (n / size)).sum())
        assert abs(chi - (size - 1)) < 5 * math.sqrt(2 * (size - 1))
        assert set(drawn.tolist()) == {-1, 1}
        assert abs(float(drawn.double().sum())) < 5 * math.sqrt(n)


def test_enough_cells_rarely_fail() -> None:
    """Where it is worst, 2% of all seeds: 200 seeds, 5 sigma."""
    failed, cells = 0, enough_cells(100)
    for seed in range(200):
        edges = hashed(fll.rng.stream(31, seed).subset(100, 2000), cells, seed)
        nothing = torch.zeros(cells, dtype=torch.int64)
        failed += peeling.peel(edges, nothing).left.numel() > 0
    assert failed <= 200 * 0.02 + 5 * math.sqrt(200 * 0.02 * 0.98)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either fraction or k"),
        ({"fraction": 0.0}, "fraction in"),
        ({"k": 0}, "k of at least 1"),
        ({"fraction": 0.1, "capacity": 0.05}, "at least the fraction 0.1"),
        ({"k": 3, "capacity": 0.0}, "capacity in"),
        ({"k": 3, "capacity": 100.0}, "capacity in"),
        ({"k": 3, "capacity": math.nan}, "capacity in"),
        ({"k": 3, "bits": 0}, "1 to 32 bits"),
        ({"k": 3, "bits": 33}, "1 to 32 bits"),
        ({"k": 3, "seed": -1}, "seed in"),
        ({"k": 3, "seed": 1 << 63}, "seed in"),
    ],
)
def test_impossible_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Sketch(**settings)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cuda_makes_the_same_bytes_and_peels_them() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    xs = clients(6)
    here = [COMPRESSOR.encode(x, {}, fll.rng.stream(0))[0] for x in xs]
    there = [COMPRESSOR.encode(x.cuda(), {}, fll.rng.stream(0))[0] for x in xs]
    assert [fll.pack(p) for p in here] == [fll.pack(p) for p in there]
    total = fll.add(there)
    assert total.tensor("cells").is_cuda
    assert fll.pack(total) == fll.pack(fll.add(here))
    peeled = fll.peel(total)
    assert peeled.values.is_cuda
    assert torch.equal(peeled.values.cpu(), summed(here))

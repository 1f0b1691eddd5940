"""What budgets rest on: histograms, predictions, one price, joined parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import decoders, wire
from fl_lowrank.compressors.allocation.factors import Factors, spectrum
from fl_lowrank.compressors.allocation.families import Family
from fl_lowrank.compressors.allocation.magnitudes import Magnitudes
from fl_lowrank.compressors.allocation.plan import parts_of, plan
from fl_lowrank.compressors.allocation.rounding import Rounding
from fl_lowrank.compressors.allocation.selection import Selection

RNG = fll.rng.stream(0, "allocation")


def heavy(count: int, key: int = 0) -> Tensor:
    """Student's t with three degrees of freedom."""
    draws = fll.rng.stream(100, key).normal(4, count).double()
    return draws[0] / draws[1:].square().mean(0).sqrt()


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1.0),
        (torch.float16, 100.0),
        (torch.bfloat16, 1e-30),
        (torch.float64, 1e300),
        (torch.float64, 1e-300),
        (torch.float32, 1e-41),
    ],
)
def test_a_histogram_counts_every_entry(dtype: torch.dtype, scale: float) -> None:
    x = (heavy(5000).clamp(-20, 20) * scale).to(dtype)
    x[::7] = 0.0
    exponent = math.frexp(float(x.abs().max()))[1]
    found = Magnitudes.of(x, exponent)
    half = exponent // 2
    wide = (x.double() / 2.0**half / 2.0 ** (exponent - half)).abs()
    assert found.counts.sum() == found.numel == 5000
    assert found.counts[0] == int((wide == 0).sum())
    assert found.peak == float(wide.max())
    assert 0.5 <= found.peak < 1.0
    assert found.energy == pytest.approx(float(wide.square().sum()))
    counts, middles, widths = found.bins
    assert (np.diff(middles) > 0).all()
    assert (widths <= middles / 16).all()
    for bound in (0.2, 0.05, 0.01):
        above = int((wide >= bound).sum())
        count, energy = found.above(np.array([bound]))
        assert float(count[0]) == pytest.approx(above, abs=0.04 * above + 3)
        expected = float(wide[wide >= bound].square().sum())
        assert float(energy[0]) == pytest.approx(expected, rel=0.05, abs=1e-2)
        assert counts[middles - widths / 2 >= bound].sum() <= above


def test_joined_histograms_are_those_of_the_joined_tensor() -> None:
    x, y = heavy(6000), 0.01 * heavy(9000, 1)
    both, joint = Magnitudes.of(x, 4) + Magnitudes.of(y, 4), torch.cat((x, y))
    whole = Magnitudes.of(joint, 4)
    assert (both.counts == whole.counts).all()
    assert (both.numel, both.peak) == (whole.numel, whole.peak)
    assert both.energy == pytest.approx(whole.energy)


def test_clustered_positions_are_noticed() -> None:
    x = heavy(40_000).reshape(200, 200)
    assert Magnitudes.of(x, 8).clustering > 0.95
    x[::10] *= 20.0
    assert Magnitudes.of(x, 8).clustering < 0.7


@pytest.mark.parametrize("family", [Rounding, Selection])
@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_predictions_are_near_real_messages(
    family: type[Rounding] | type[Selection], kind: str
) -> None:
    """Within 6% or 16 bytes of the size, and 6% of the error, at all rates."""
    normal = fll.rng.stream(101).normal(40_000).double()
    x = normal if kind == "normal" else heavy(40_000)
    exponent = math.frexp(float(x.abs().max()))[1]
    table = family(Magnitudes.of(x, exponent))
    sizes = []
    for price in torch.logspace(-9, -1, 9).tolist():
        for scale in (1.0, 1.15):
            choice = table.best(price)
            payload, _ = choice.compressor(scale).encode(x, {}, RNG)
            size = len(wire.pack_body(payload))
            bits = choice.bits_at(scale)
            assert bits / 8 == pytest.approx(size, rel=0.06, abs=16)
            sizes.append(size)
        assert choice.bits == pytest.approx(table.best(price).bits_at(1.0), rel=0.06)
        payload, _ = choice.compressor(1.0).encode(x, {}, RNG)
        off = math.ldexp(1.0, -exponent) * (decoders.decode(payload) - x)
        assert choice.error == pytest.approx(float(off.square().sum()), rel=0.06)
        assert choice.cost(price) == choice.error + price * choice.bits
    assert max(sizes) > 20 * min(sizes)


def test_predictions_of_low_rank() -> None:
    rng = fll.rng.stream(102)
    u = torch.linalg.qr(rng.child(0).normal(120, 120).double()).Q
    v = torch.linalg.qr(rng.child(1).normal(150, 120).double()).Q
    values = 1.0 / torch.arange(1.0, 121.0, dtype=torch.float64)
    x = (u * values) @ v.T
    found = spectrum(x.T, 3)
    assert found * 8.0 == pytest.approx(values.numpy(), rel=1e-6)
    energy = float(values.square().sum())
    table: Family = Factors(found * 8.0, energy, (120, 150))
    ranks = set()
    for price in (1e-4, 1e-5, 1e-6):
        choice = table.best(price)
        compressor = choice.compressor(1.0)
        payload, _ = compressor.encode(x, {}, RNG)
        size = len(wire.pack_body(payload))
        assert choice.bits / 8 == pytest.approx(size, rel=0.15, abs=30)
        off = float((decoders.decode(payload) - x).square().sum())
        assert choice.error == pytest.approx(off, rel=0.1)
        ranks.add(str(compressor).partition(",")[0])
    assert len(ranks) == 3


def test_a_large_matrix_is_looked_at_through_a_sketch() -> None:
    """Its first singular values, of a rank that a budget may choose."""
    rng = fll.rng.stream(103)
    x = rng.child(0).normal(600, 5) @ rng.child(1).normal(5, 700)
    found = spectrum(x, 0)
    assert len(found) == 256
    assert found[:5] == pytest.approx(torch.linalg.svdvals(x)[:5].numpy(), rel=1e-4)
    assert found[5:].max() < 1e-3 * found[0]


def test_more_bits_are_planned_where_more_are_allowed() -> None:
    x = [heavy(4000).reshape(40, 100), 0.05 * heavy(9000, 1), 0.3 * heavy(50, 2)]
    for method in ("dither", "topk", "lowrank"):
        parts = parts_of(x, method)
        planned = [plan(parts, bits) for bits in (3e3, 1e4, 3e4)]
        sizes = [sum(choice.bits for _, choice in p) for p in planned]
        errors = [sum(choice.error for _, choice in p) for p in planned]
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)
        for found in planned:
            members = sorted(i for part, _ in found for i in part.members)
            assert members == [0, 1, 2]


def test_small_tensors_are_joined_and_large_unlike_ones_are_not() -> None:
    x = [heavy(30, i) for i in range(20)]
    x += [heavy(30_000, 20), 0.01 * heavy(30_000, 21)]
    found = {part.members for part, _ in plan(parts_of(x, "dither"), 2e5)}
    assert len(found) <= 4
    assert not any({20, 21} <= set(members) for members in found)
    halves = [x[0].to(torch.float16), x[1], x[2].to(torch.float16)]
    found = {part.members for part, _ in plan(parts_of(halves, "dither"), 2000)}
    assert found == {(0, 2), (1,)}

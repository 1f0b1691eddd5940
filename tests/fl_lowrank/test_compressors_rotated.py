"""rotated(...): the inner guarantee, the inner state, and what a rotation is for."""

from __future__ import annotations

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import (
    F16,
    Contractive,
    Identity,
    Natural,
    NoGuarantee,
    PowerSgd,
    RandK,
    Rotated,
    SparseDithering,
    SparseDitheringUnbiased,
    TopK,
    Unbiased,
)
from fl_lowrank.compressors import Eden
from fl_lowrank.errors import InputError
from fl_lowrank.hadamard import rotate
from fl_lowrank.rng import Rng
from tests.fl_lowrank.compressing import error, moments, send


def spike(d: int = 600) -> torch.Tensor:
    x = torch.zeros(d)
    x[d // 2] = 5.0
    return x


def test_it_is_the_inner_one_between_two_rotations() -> None:
    x = fll.rng.stream(1).normal(9, 23)
    c = Rotated(TopK(k=20))
    payload, _ = c.encode(x, {}, fll.rng.stream(2))
    y = rotate(x.reshape(-1), Rng(int(payload.tensor("seed"))))
    z = rotate(fll.decode(payload).reshape(-1), Rng(int(payload.tensor("seed"))))
    kept = y.abs().topk(20).indices
    expected = torch.zeros_like(y).index_put((kept,), y[kept])
    assert torch.allclose(z, expected, atol=1e-5)


def test_guarantees_carry_over() -> None:
    shape = (40, 24)
    assert Rotated(SparseDithering(0.3)).guarantee(shape) == Contractive(0.7)
    assert Rotated(RandK(k=60)).guarantee(shape) == Unbiased(16.0)
    assert Rotated(Natural()).guarantee(shape) == Natural().guarantee((960,))
    assert isinstance(Rotated(Eden()).guarantee(shape), NoGuarantee)
    # The inner one sees a vector, whose rank is one matrix column: not (40, 24).
    inner = PowerSgd(rank=1)
    assert Rotated(inner).guarantee(shape) == (
        Contractive(1 - 2**-40)
        if isinstance(inner.guarantee((960,)), fll.Exact)
        else inner.guarantee((960,))
    )


def test_an_exact_one_is_exact_up_to_rounding() -> None:
    found = Rotated(Identity()).guarantee((5,))
    assert isinstance(found, Contractive)
    for d in (1, 2, 600, 5000):
        x = fll.rng.stream(3).normal(d) ** 3
        assert error(x, send(Rotated(Identity()), x)) <= 1 - found.delta


def test_it_spreads_what_would_be_lost() -> None:
    """One step for all entries suits a spread vector: of a spike, a part is sent."""
    x = spike()
    kept = Rotated(RandK(fraction=0.25))
    bare, _ = moments(RandK(fraction=0.25), x, 100)
    assert bare == pytest.approx(3.0, abs=1.0)
    values = [error(x, send(kept, x, i)) for i in range(20)]
    assert max(values) < 5.0
    assert min(values) > 1.0  # every message has a fair share; the bare one 0 or 16
    assert {round(error(x, send(RandK(fraction=0.25), x, i))) for i in range(20)} == {
        1,
        9,
    }


def test_unbiased_with_the_variance_of_the_inner_one() -> None:
    """Midway entries no longer meet midway levels: below omega. 40 draws, 5 sigma."""
    mean, sigma = moments(Rotated(SparseDitheringUnbiased(0.25)), spike(), 40)
    assert 0.0 < mean <= 0.25 + 5 * sigma


def test_state_passes_through() -> None:
    c = Rotated(PowerSgd(rank=1))
    x = fll.rng.stream(4).normal(12, 10)
    state = c.init((12, 10))
    assert state.keys() == PowerSgd(rank=1).init((120,)).keys()
    _, after = c.encode(x, state, fll.rng.stream(5))
    assert after.keys() == state.keys()


def test_halves_are_rotated_in_float32() -> None:
    x = fll.rng.stream(6).normal(300).to(torch.float16)
    payload, _ = Rotated(F16()).encode(x, {}, fll.rng.stream(7))
    inner = payload.fields["inner"].value
    assert isinstance(inner, fll.Payload)
    assert (inner.dtype, payload.dtype) == (torch.float32, torch.float16)
    assert error(x, fll.decode(payload)) < 1e-6


def test_a_norm_beyond_the_dtype_is_refused() -> None:
    x = torch.full((300,), 3e38)
    with pytest.raises(InputError, match=r"rotated: entries up to 3e\+38"):
        Rotated(Identity()).encode(x, {}, fll.rng.stream(0))
    assert torch.isfinite(send(Rotated(Identity()), x / 20)).all()


def test_text() -> None:
    c = Rotated(SparseDithering(nu=0.2))
    assert str(c) == "rotated(inner=sparse_dithering(nu=0.2))"
    assert fll.parse(str(c)) == c
    chain = fll.parse("rotated(inner=topk(k=9) >> natural())")
    assert fll.parse(str(chain)) == chain

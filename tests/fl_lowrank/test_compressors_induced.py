"""induced: unbiased whatever the biased part does, with the stated variance."""

from __future__ import annotations

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Exact, Induced, NoGuarantee, TopK, Unbiased, decoders
from fl_lowrank.errors import SettingError
from fl_lowrank.types import Payload
from tests.fl_lowrank.compressing import error, moments, send, signs


@pytest.mark.parametrize(
    ("text", "guarantee"),
    [
        ("induced(biased=topk(k=10), unbiased=randk(k=10))", Unbiased(1 + 9 * 0.9)),
        ("induced(biased=topk(k=20), unbiased=randk(k=10))", Unbiased(1 + 9 * 0.8)),
        (
            "induced(biased=randk(k=50), unbiased=natural_stochastic())",
            Unbiased(1 + 1 / 8),
        ),
        ("induced(biased=topk(k=100), unbiased=randk(k=1))", Exact()),
        ("induced(biased=topk(k=1), unbiased=identity())", Unbiased(1.0)),
        (
            "shrunk(inner=induced(biased=topk(k=10), unbiased=randk(k=10)))",
            fll.Contractive(1 / 9.1),
        ),
    ],
)
def test_guarantee(text: str, guarantee: fll.Guarantee) -> None:
    found = fll.parse(text).guarantee((100,))
    assert type(found) is type(guarantee)
    for name, value in vars(guarantee).items():
        assert getattr(found, name) == pytest.approx(value)


def test_nothing_is_claimed_where_nothing_bounds_the_error() -> None:
    c = fll.parse("induced(biased=svd(rank=1) >> natural(), unbiased=randk(k=3))")
    assert isinstance(c.guarantee((9, 9)), NoGuarantee)


def test_the_variance_is_attained() -> None:
    """randk's variance is the same for every rest; 200 draws at 5 sigma: 6e-7."""
    x = signs(400)
    text = "induced(biased=topk(k=100), unbiased=randk(k=100))"
    mean, sigma = moments(text, x, 200)
    assert mean == pytest.approx(3 * 0.75, abs=5 * sigma)
    assert 0.0 <= sigma < 0.05


def test_the_mean_is_the_input() -> None:
    """400 draws of 50 entries at 5 sigma: 3e-5 by chance."""
    x = fll.rng.stream(60).normal(50).double()
    text = "induced(biased=topk(k=5) >> natural(), unbiased=randk(k=10))"
    draws = torch.stack([send(text, x, i) for i in range(400)])
    off = (draws.mean(0) - x).abs() / (draws.std(0) / 20 + 1e-12)
    assert float(off.max()) < 5
    assert float(draws.std(0).min()) > 0


def test_the_rest_is_that_of_what_is_decoded() -> None:
    """Not of what was selected: naturals err by up to a third, and Q must see it."""
    x = fll.rng.stream(61).normal(64)
    c = fll.parse("induced(biased=topk(k=8) >> natural(), unbiased=identity())")
    payload, _ = c.encode(x, {}, fll.rng.stream(0))
    first, second = (payload.fields[name].value for name in ("first", "second"))
    assert isinstance(first, Payload)
    assert isinstance(second, Payload)
    y = decoders.decode(first)
    assert error(x, y) > 0.1
    assert torch.equal(decoders.decode(second), x - y)
    assert error(x, send(c, x)) < 1e-12


def test_both_parts_remember() -> None:
    c = fll.parse("induced(biased=powersgd(rank=1), unbiased=randk(k=3))")
    state = c.init((9, 8))
    assert list(state) == ["first.right"]
    _, after = c.encode(fll.rng.stream(62).normal(9, 8), state, fll.rng.stream(0))
    assert list(after) == ["first.right"]
    assert after["first.right"].any()


def test_refusals() -> None:
    c = Induced(TopK(k=1), TopK(k=2))
    with pytest.raises(SettingError, match="expected an unbiased compressor for the"):
        c.encode(torch.ones(9), {}, fll.rng.stream(0))
    for text in (
        "induced(biased=induced(biased=topk(k=1), unbiased=randk(k=1)), "
        "unbiased=randk(k=1))",
        "induced(biased=topk(k=1), unbiased=randk(k=9) >> induced(biased=topk(k=1), "
        "unbiased=randk(k=1)))",
    ):
        with pytest.raises(SettingError, match="parts without another induced"):
            fll.parse(text)

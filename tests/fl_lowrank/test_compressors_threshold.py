"""threshold: what is kept, and the bound on what is not."""

from __future__ import annotations

import math

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Contractive, Exact, NoGuarantee, Threshold, checks
from fl_lowrank.errors import SettingError
from tests.fl_lowrank.compressing import error, send, signs


@pytest.mark.parametrize("relative", [0.1, 0.5, 1.0, 2.0, 3.0])
def test_what_is_at_least_so_large_is_kept_as_it_is(relative: float) -> None:
    x = fll.rng.stream(50).normal(80, 125)
    y = send(Threshold(relative=relative), x)
    kept = x.abs() >= relative * float(x.double().square().mean().sqrt())
    assert 0 < int(kept.sum()) < x.numel()
    assert torch.equal(y, torch.where(kept, x, torch.zeros_like(x)))


def test_an_absolute_threshold_is_in_units_of_the_tensor() -> None:
    x = fll.rng.stream(51).normal(999)
    y = send(Threshold(value=1.25), x)
    assert torch.equal(y, torch.where(x.abs() >= 1.25, x, torch.zeros_like(x)))
    assert int((send(Threshold(value=1.25), 2.0 * x) != 0).sum()) > int((y != 0).sum())


@pytest.mark.parametrize("setting", [{"relative": 1e9}, {"value": 1e9}])
def test_the_largest_is_always_kept(setting: dict[str, float]) -> None:
    x = torch.tensor([1.0, -3.0, 2.0, 3.0])
    assert send(Threshold(**setting), x).tolist() == [0.0, -3.0, 0.0, 3.0]
    assert not send(Threshold(**setting), torch.zeros(4)).any()


@pytest.mark.parametrize("magnitude", [1.0, 0.1, 1 / 3, 1e-42, 1e38])
def test_equal_magnitudes_are_all_kept(magnitude: float) -> None:
    """Their mean square may be rounded upwards; none may be lost by that."""
    x = magnitude * signs(1009)
    assert torch.equal(send(Threshold(relative=1.0), x), x)


@pytest.mark.parametrize("relative", [0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("d", [2, 10, 1000])
def test_the_bound_is_approached(relative: float, d: int) -> None:
    """All entries but one just below the threshold.

    With n = d - 1 entries of 1 and one of a: (n + a^2) / d = 1 / r^2.
    """
    below = relative * (1 - 1e-6)
    x = torch.ones(d, dtype=torch.float64)
    x[d // 2] = math.sqrt(d / below**2 - (d - 1))
    found = error(x, send(Threshold(relative=relative), x))
    guarantee = Threshold(relative=relative).guarantee((d,))
    assert isinstance(guarantee, Contractive)
    assert 0.999 * (1 - guarantee.delta) < found <= 1 - guarantee.delta


def test_guarantees() -> None:
    assert Threshold(relative=0.5).guarantee((3, 4)) == Contractive(1 - 0.25 * 11 / 12)
    for c in (Threshold(relative=1.0), Threshold(relative=7.0), Threshold(value=1e-9)):
        found = c.guarantee((8,))
        assert isinstance(found, Contractive)
        assert found.delta == pytest.approx(1 / 8)
        assert c.guarantee(()) == c.guarantee((1,)) == c.guarantee((0, 3)) == Exact()


def test_composition_needs_a_bound_for_any_number_of_entries() -> None:
    found = fll.parse("threshold(relative=0.5) >> natural()").guarantee((12,))
    assert isinstance(found, Contractive)
    assert found.delta == pytest.approx((1 - 0.25 * 11 / 12) * 8 / 9)
    other = fll.parse("threshold(relative=0.5) >> svd(rank=1)").guarantee((12,))
    assert isinstance(other, NoGuarantee)
    assert "depends on the tensor" in other.reason


def test_an_absolute_threshold_keeps_every_law_but_that_of_scale() -> None:
    law = checks.check_scaling_equivariant
    c = Threshold(value=0.7)
    checks.check_all(c, dtypes=[torch.float32], except_laws=[law])
    with pytest.raises(AssertionError, match=r"is not 4\.0 C"):
        law(c, (1009,), torch.float32, "cpu")


@pytest.mark.parametrize(
    "text",
    [
        "threshold()",
        "threshold(relative=1.0, value=1.0)",
        "threshold(relative=0.0)",
        "threshold(relative=-1.0)",
        "threshold(value=1e999)",
    ],
)
def test_impossible_settings(text: str) -> None:
    with pytest.raises(SettingError, match="threshold: expected either relative or"):
        fll.parse(text)
    with pytest.raises(SettingError, match="threshold"):
        Threshold(relative=math.nan)

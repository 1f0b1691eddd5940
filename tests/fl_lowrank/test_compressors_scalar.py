"""ecsq: the error that is asked for, at the rate that theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Ecsq, NoGuarantee
from fl_lowrank.compressors import scalar
from fl_lowrank.compressors.levels import Rounded, Scaled, nearest_levels
from fl_lowrank.errors import SettingError
from tests.fl_lowrank.compressing import error, send, signs

D = 200_000  # more than the search samples from


def student(d: int, degrees: int = 3) -> Tensor:
    draws = fll.rng.stream(30, "student").normal(degrees + 1, d)
    return draws[0] / draws[1:].square().mean(0).sqrt()


def inputs(d: int) -> dict[str, Tensor]:
    position = torch.arange(d)
    normal = fll.rng.stream(31).normal(d)
    return {
        "normal": normal,
        "student": student(d),
        "laplace": normal.sign() * (1e-30 + fll.rng.stream(32).uniform(d)).log(),
        "sparse": torch.where(position % 50 == 0, normal, 0.0),
        "two sizes": torch.where(position % 2 == 0, 0.6 * signs(d), signs(d)),
        "all equal": signs(d),
        "one hot": (position == d // 3).float(),
        "periodic": torch.cos(position * (2 * math.pi / 64)),
        "one large": torch.where(position == 5, 1e3, normal),
    }


@pytest.mark.parametrize("nmse", [1e-6, 1e-3, 0.05, 0.4, 0.9])
@pytest.mark.parametrize("d", [1, 2, 63, 4000, D])
def test_error_is_at_most_nmse_whatever_comes(nmse: float, d: int) -> None:
    for name, x in inputs(d).items():
        assert error(x, send(Ecsq(nmse=nmse), x)) <= nmse * (1 + 1e-6), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.floats(1e-5, 0.99),
)
def test_error_is_at_most_nmse_for_any_vector(values: list[float], nmse: float) -> None:
    x = torch.tensor(values)
    if x.any():
        slack = 1e-44 * len(values) / float(x.abs().max())
        assert error(x, send(Ecsq(nmse=nmse), x)) <= nmse * (1 + 1e-5) + slack


@pytest.mark.parametrize("nmse", [1e-4, 0.02, 0.1, 0.4, 0.8])
@pytest.mark.parametrize("name", ["normal", "student", "laplace"])
@pytest.mark.parametrize("d", [20_000, D])
def test_error_is_within_1_percent_of_nmse(nmse: float, name: str, d: int) -> None:
    """Where it varies smoothly: it jumps where few entries have most of the norm."""
    x = inputs(d)[name]
    assert error(x, send(Ecsq(nmse=nmse), x)) >= 0.989 * nmse


@pytest.mark.parametrize("step", [0.01, 0.5, 1.0, 1.9])
def test_error_of_a_step_is_at_most_a_quarter_of_its_square(step: float) -> None:
    for name, x in inputs(3000).items():
        bound = Ecsq(step=step).guarantee((3000,))
        assert bound == Contractive(1 - step**2 / 4)
        assert error(x, send(Ecsq(step=step), x)) <= step**2 / 4 * (1 + 1e-5), name


@pytest.mark.parametrize("step", [0.5, 1.0, 1.9])
def test_bound_of_a_step_is_approached(step: float) -> None:
    """All but one entry just below half a step, and lost."""
    d = 10_000
    small = 0.4999 * step
    x = torch.full((d,), small, dtype=torch.float64)
    x[0] = math.sqrt(d - (d - 1) * small**2)  # the mean square is 1
    lost = error(x, send(Ecsq(step=step), x))
    assert 0.999 * step**2 / 4 <= lost <= step**2 / 4


def test_a_coarse_step_may_lose_everything() -> None:
    assert isinstance(Ecsq(step=2.0).guarantee((9,)), NoGuarantee)
    assert not send(Ecsq(step=2.01), signs(9)).any()
    x = fll.rng.stream(3).normal(10_000)
    assert error(x, send(Ecsq(step=2.63), x)) == pytest.approx(0.4, rel=0.02)


def test_levels_and_scale_are_the_definition() -> None:
    x = fll.rng.stream(7).normal(500).to(torch.float64)
    payload, _ = Ecsq(step=0.8).encode(x, {}, fll.rng.stream(0))
    k = torch.round(x / (0.8 * x.square().mean().sqrt()))
    assert torch.equal(payload.tensor("levels").to(torch.float64), k)
    projection = float(x @ k / (k @ k))
    assert float(payload.tensor("scale")) == pytest.approx(projection, rel=1e-12)


@pytest.mark.parametrize("step", [1e-2, 0.3, 2.0, 4.0])
def test_error_that_the_search_sees_is_the_error(step: float) -> None:
    x = student(70_001).to(torch.float64)
    unit = step * float(x.square().mean().sqrt())
    rounded = nearest_levels(Scaled.of(x), unit / float(x.abs().max()))
    k = rounded.levels.to(torch.float64)
    assert torch.equal(k, torch.round(x / unit))
    y = k * (x @ k) / (k @ k)
    assert rounded.nmse == pytest.approx(error(x, y), rel=1e-9)
    assert rounded.gain * unit == pytest.approx(float((x @ k) / (k @ k)), rel=1e-12)


def test_magnitudes_that_are_few_are_sent_exactly() -> None:
    """The step is then large: one bit for a sign, 1.3 for three levels."""
    for name, most in (("all equal", 1.01), ("two sizes", 2.02), ("one hot", 0.01)):
        x = inputs(D)[name]
        payload, _ = Ecsq(nmse=0.01).encode(x, {}, fll.rng.stream(0))
        data = fll.pack(payload)
        assert 8 * len(data) / D <= most, name
        assert error(x, fll.decode(fll.unpack(data))) <= 0.01


@pytest.mark.parametrize(
    ("nmse", "most"),
    [(0.02, 1.12), (0.05, 1.15), (0.1, 1.18), (0.2, 1.25), (0.4, 1.36)],
)
def test_rate_over_the_bound_for_gaussian_numbers(nmse: float, most: float) -> None:
    """Gish and Pierce (1968): a quarter bit an entry above, at high rates."""
    x = inputs(D)["normal"]
    payload, _ = Ecsq(nmse=nmse).encode(x, {}, fll.rng.stream(0))
    data = fll.pack(payload)
    reached = error(x, fll.decode(fll.unpack(data)))
    bound = 0.5 * math.log2(1 / reached)
    assert bound <= 8 * len(data) / D <= most * bound


def test_heavy_tails_cost_less_than_gaussian_numbers() -> None:
    x = student(D)
    payload, _ = Ecsq(nmse=1e-4).encode(x, {}, fll.rng.stream(0))
    assert 8 * len(fll.pack(payload)) / D <= 6.8


def test_the_search_looks_at_the_whole_tensor_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def counted(x: Scaled, step: float) -> Rounded:
        sizes.append(x.flat.numel())
        return nearest_levels(x, step)

    monkeypatch.setattr(scalar, "nearest_levels", counted)
    for name, nmse in (("normal", 0.1), ("normal", 1e-3), ("student", 0.05)):
        sizes.clear()
        Ecsq(nmse=nmse).encode(inputs(D)[name], {}, fll.rng.stream(0))
        assert 1 <= sizes.count(D) <= 4
        assert set(sizes) - {D}, "no sample was taken"
    for name in ("all equal", "one large"):  # discontinuous ones are bisected
        sizes.clear()
        Ecsq(nmse=0.3).encode(inputs(D)[name], {}, fll.rng.stream(0))
        assert sizes.count(D) <= 20


@pytest.mark.parametrize("magnitude", [1e-44, 1e-30, 1e30, 3e38])
def test_magnitude_does_not_matter(magnitude: float) -> None:
    """Subnormal float32 numbers have few digits: their last place is allowed."""
    for name, x in inputs(1009).items():
        scaled = (x / x.abs().max() * magnitude).to(torch.float32)
        y = send(Ecsq(nmse=0.1), scaled)
        off = math.sqrt(error(scaled, y) * float(scaled.double().square().sum()))
        norm = float(scaled.double().norm())
        assert off <= math.sqrt(0.1) * norm * (1 + 1e-5) + 1e-45 * 32, name


def test_impossible_settings() -> None:
    for settings_ in ({}, {"step": 1.0, "nmse": 0.1}):
        with pytest.raises(SettingError, match="ecsq: expected either step or nmse"):
            Ecsq(**settings_)
    for nmse in (0.0, 1.0, -1.0, math.nan, 1e-9):
        with pytest.raises(SettingError, match="ecsq: expected nmse in"):
            Ecsq(nmse=nmse)
    for step in (0.0, -1.0, math.inf, math.nan, 1e-9):
        with pytest.raises(SettingError, match="ecsq: expected step in"):
            Ecsq(step=step)

"""topk and randk: constants that are attained, ties, zeros."""

from __future__ import annotations

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Contractive, Exact, RandK, TopK, Unbiased
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, moments, send, signs


@pytest.mark.parametrize(("k", "d"), [(1, 10), (7, 1009), (100, 1009), (999, 1000)])
@pytest.mark.parametrize("magnitude", [1e-40, 1.0, 1e30])
def test_topk_bound_is_attained_by_equal_magnitudes(
    k: int, d: int, magnitude: float
) -> None:
    x = magnitude * signs(d)
    assert error(x, send(TopK(k=k), x)) == pytest.approx(1 - k / d, rel=1e-9)
    assert TopK(k=k).guarantee((d,)) == Contractive(k / d)


def test_topk_keeps_the_largest_as_they_are() -> None:
    x = fll.rng.stream(1).normal(31, 17)
    y = send(TopK(fraction=0.1), x)
    kept = y != 0
    assert int(kept.sum()) == 53  # ceil(52.7)
    assert torch.equal(y[kept], x[kept])
    assert float(x[kept].abs().min()) > float(x[~kept].abs().max())


def test_topk_ties_go_to_the_smaller_position() -> None:
    y = send(TopK(k=3), torch.tensor([1.0, -2.0, 1.0, -1.0, 1.0]))
    assert y.tolist() == [1.0, -2.0, 1.0, 0.0, 0.0]


def test_topk_sends_no_zeros() -> None:
    x = torch.zeros(1000)
    x[[3, 999]] = torch.tensor([1.0, -1.0])
    payload, _ = TopK(k=100).encode(x, {}, fll.rng.stream(0))
    assert payload.tensor("indices").tolist() == [3, 999]
    assert torch.equal(send(TopK(k=100), x), x)


@pytest.mark.parametrize("magnitude", [6e-8, 3e-5, 60000.0])
def test_topk_at_the_ends_of_float16(magnitude: float) -> None:
    x = (signs(50) * magnitude).to(torch.float16)
    y = send(TopK(k=10), x)
    assert torch.equal(y[:10], x[:10])
    assert not y[10:].any()


def test_topk_of_everything_is_exact() -> None:
    assert TopK(k=50).guarantee((7, 7)) == Exact()
    assert TopK(fraction=1.0).guarantee((7, 7)) == Exact()
    assert TopK(fraction=0.5).guarantee(()) == Exact()


@pytest.mark.parametrize(("k", "d"), [(1, 40), (10, 40), (39, 40)])
def test_randk_second_moment_is_d_over_k_for_every_input(k: int, d: int) -> None:
    """400 draws of two inputs at 5 sigma: 1e-6 by chance."""
    for x in (signs(d), torch.arange(1.0, d + 1)):
        mean, sigma = moments(RandK(k=k), x, 400)
        assert abs(mean - (d / k - 1)) <= 5 * sigma + 1e-6
    assert RandK(k=k).guarantee((d,)) == Unbiased(d / k)


def test_randk_scales_what_it_keeps() -> None:
    x = fll.rng.stream(2).normal(1000)
    y = send(RandK(k=125), x)
    kept = y != 0
    assert int(kept.sum()) == 125
    assert torch.equal(y[kept], 8 * x[kept])


def test_randk_positions_cost_eight_bytes() -> None:
    payload, _ = RandK(k=10).encode(torch.randn(10**5), {}, fll.rng.stream(3))
    assert len(fll.pack(payload)) <= 10 * 4 + 32


def test_randk_refuses_what_would_overflow() -> None:
    x = torch.full((100,), 60000.0, dtype=torch.float16)
    with pytest.raises(InputError, match="randk: entries up to 6e\\+04 times 10"):
        RandK(k=10).encode(x, {}, fll.rng.stream(0))


@pytest.mark.parametrize("cls", [TopK, RandK])
@pytest.mark.parametrize(
    "settings",
    [{}, {"fraction": 0.0}, {"fraction": 1.5}, {"k": 0}, {"k": 3, "fraction": 0.1}],
)
def test_impossible_settings(
    cls: type[TopK] | type[RandK], settings: dict[str, float]
) -> None:
    with pytest.raises(SettingError, match=f"{cls.name}: expected"):
        cls(**settings)  # type: ignore[arg-type]


def test_a_sum_of_sparse_messages_makes_no_dense_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = fll.rng.stream(4).normal(1000)
    payloads = [
        TopK(k=9).encode(x, {}, fll.rng.stream(0))[0],
        RandK(k=9).encode(x, {}, fll.rng.stream(0))[0],
    ]
    expected = sum(fll.decode(p) for p in payloads)
    for cls in (TopK, RandK):
        monkeypatch.setattr(cls, "decode", None)
    out = torch.zeros(1000)
    fll.accumulate(payloads, [1.0, 1.0], out)
    assert isinstance(expected, torch.Tensor)
    assert torch.allclose(out, expected)

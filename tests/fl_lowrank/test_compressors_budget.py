"""budget on single tensors: within its bytes whatever comes, and well spent."""

from __future__ import annotations

import math
import re

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import Budget, Contractive, Ecsq, Natural, NoGuarantee, Then, TopK
from fl_lowrank.errors import InputError, SettingError
from tests.fl_lowrank.compressing import error, send, signs

METHODS = ("dither", "topk", "lowrank", "best")
RNG = fll.rng.stream(0, "budget")


def tensors() -> dict[str, torch.Tensor]:
    """Ordinary tensors, and those whose coarsest messages are large."""
    normal = fll.rng.stream(80).normal(60, 50)
    return {
        "normal": normal,
        "heavy": normal**5,
        "all equal": signs(3000).reshape(60, 50),
        "89% equal": torch.where(
            torch.arange(3000) % 9 == 0, normal.ravel(), signs(3000)
        ),
        "one hot": torch.eye(1, 3000).reshape(60, 50),
        "low rank": torch.outer(normal[:, 0], normal[0]),
        "zero": torch.zeros(60, 50),
        "single": torch.tensor(-3.5),
        "empty": torch.zeros(0, 7),
        "double": 1e200 * normal.double(),
        "subnormal": 1e-42 * normal,
        "half": normal.to(torch.float16),
    }


def size(compressor: fll.Compressor, x: torch.Tensor) -> int:
    return len(fll.pack(compressor.encode(x, {}, RNG)[0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [48, 120, 1500, 10**6])
def test_messages_are_within_the_bytes(limit: int, method: str) -> None:
    for name, x in tensors().items():
        assert size(Budget(limit, method), x) <= limit, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [100, 700])
def test_the_bytes_are_used(limit: int, method: str) -> None:
    """Where the tensor has more to tell; the least that was measured is 98.8%."""
    for name in ("normal", "heavy"):
        x = tensors()[name]
        assert size(Budget(limit, method), x) >= 0.98 * limit - 2, name


@pytest.mark.parametrize("method", METHODS)
def test_more_bytes_lose_less(method: str) -> None:
    for name in ("heavy", "low rank", "half"):
        x = tensors()[name]
        errors = [error(x, send(Budget(n, method), x)) for n in (60, 300, 3000)]
        assert errors == sorted(errors, reverse=True), name
        assert errors[-1] < 0.2 * errors[0], name


def test_too_few_bytes_say_how_many_are_needed() -> None:
    for name, x in tensors().items():
        with pytest.raises(InputError, match="budget: 9 bytes are too few") as caught:
            Budget(9).encode(x, {}, RNG)
        (needed,) = re.findall(r"allow (\d+),", str(caught.value))
        assert int(needed) < 50, name
        assert size(Budget(int(needed)), x) <= int(needed), name


def test_a_gaussian_vector_is_sent_as_by_the_best_step() -> None:
    """Near the least error over all steps whose message fits."""
    x = fll.rng.stream(81).normal(20_000)
    for limit in (1500, 6000):
        found = error(x, send(Budget(limit), x))
        fits = [
            error(x, send(Ecsq(step=step), x))
            for step in torch.logspace(-0.5, 0.9, 40).tolist()
            if size(Ecsq(step=step), x) <= limit
        ]
        assert found <= 1.01 * min(fits)


def test_topk_sends_as_many_entries_as_fit() -> None:
    """No k that fits leaves less, to the last entry where few are sent."""
    x = fll.rng.stream(82).normal(5000) ** 3
    for limit in (60, 110):
        found = error(x, send(Budget(limit, "topk"), x))
        fits = [
            error(x, send(c, x))
            for c in (Then(TopK(k=k), Natural()) for k in range(1, 90))
            if size(c, x) <= limit
        ]
        assert 0 < len(fits) < 89
        assert found <= min(fits) * (1 + 1e-9)


def test_clustered_entries_are_sent_as_positions() -> None:
    """A few rows hold all energy: levels would tell of every other entry."""
    x = torch.zeros(200, 300)
    x[::20] = fll.rng.stream(83).normal(10, 300)
    x += 1e-3 * fll.rng.stream(84).normal(200, 300)
    y = send(Budget(1000), x)
    fits = [
        error(x, send(Ecsq(step=step), x))
        for step in torch.logspace(0.3, 1.2, 30).tolist()
        if size(Ecsq(step=step), x) <= 1000
    ]
    assert 0 < len(fits) < 30
    assert error(x, y) < 0.8 * min(fits)


def test_low_rank_finds_the_rank() -> None:
    rng = fll.rng.stream(85)
    left, right = rng.child(0).normal(150, 3), rng.child(1).normal(3, 200)
    x = left @ right + 0.05 * rng.child(2).normal(150, 200)
    (found,) = fll.allocate.settings({"x": x}, 1000, "lowrank")
    assert str(found.compressor).startswith("rsvd(rank=3,")
    energy = float(x.square().sum())
    assert found.error < 0.02 * energy
    (other,) = fll.allocate.settings({"x": x}, 1000)
    assert other.error > 0.3 * energy
    (best,) = fll.allocate.settings({"x": x}, 1000, "best")
    assert best.error == pytest.approx(found.error)


def test_guarantees_hold_where_least_is_sent() -> None:
    """All magnitudes equal, and room for hardly one entry."""
    for d in (2, 7, 300, 5000):
        x = signs(d)
        for method, delta in (("topk", 8 / 9 / d), ("dither", 1 / 3 / d)):
            c = Budget(48, method)
            guarantee = c.guarantee((d,))
            assert isinstance(guarantee, Contractive)
            assert guarantee.delta == pytest.approx(delta)
            assert error(x, send(c, x)) <= 1 - delta
    assert isinstance(Budget(9, "best").guarantee((3, 3)), NoGuarantee)
    assert isinstance(Budget(9, "lowrank").guarantee((3, 3)), NoGuarantee)


def test_units_do_not_matter() -> None:
    x = fll.rng.stream(86).normal(40, 30)
    for method in METHODS:
        y = send(Budget(300, method), x)
        for power in (-20, -3, 17):
            scaled = send(Budget(300, method), x * 2.0 ** (2 * power))
            assert torch.equal(scaled, y * 2.0 ** (2 * power)), (method, power)


def test_impossible_settings() -> None:
    for bad in (0, -3, 10**30):
        with pytest.raises(SettingError, match=r"budget: expected bytes in \[1, 2\^62"):
            Budget(bad)
    with pytest.raises(SettingError, match="no method 'magic'; there are dither, topk"):
        Budget(99, "magic")
    with pytest.raises(InputError, match="budget: expected finite"):
        Budget(99).encode(torch.tensor([1.0, math.nan]), {}, RNG)
    with pytest.raises(InputError, match="budget: expected float16"):
        Budget(99).encode(torch.tensor([1, 2]), {}, RNG)

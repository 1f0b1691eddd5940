"""What is far above the usual is left out, and what is usual is learnt."""

from __future__ import annotations

import math

import pytest

from fl_lowrank.errors import ProtocolError, SettingError
from strategies.norms import NormLimit


def test_far_above_the_median_is_refused() -> None:
    limit = NormLimit(10.0)
    for norm in (1.0, 2.0, 3.0, 29.0 / 10.0):
        limit.check(norm, first=False)
    with pytest.raises(ProtocolError, match=r"is 25 .* median .*2\.45"):
        limit.check(25.0, first=False)
    limit.check(24.0, first=False)


def test_what_is_refused_does_not_become_usual() -> None:
    limit = NormLimit(10.0)
    limit.check(1.0, first=False)
    for _ in range(100):
        with pytest.raises(ProtocolError):
            limit.check(11.0, first=False)


def test_first_messages_are_compared_with_each_other() -> None:
    """A client that joins late sends everything, others only what has changed."""
    limit = NormLimit(10.0)
    for norm in (100.0, 120.0):
        limit.check(norm, first=True)
    for norm in (5.0, 0.5, 0.05, 1e-3):
        limit.note(norm, first=False)
    limit.check(150.0, first=True)
    with pytest.raises(ProtocolError):
        limit.check(150.0, first=False)


def test_it_follows_slow_changes() -> None:
    limit = NormLimit(3.0)
    norm = 1.0
    for _ in range(5000):
        limit.check(norm, first=False)
        norm *= 1.0005
    with pytest.raises(ProtocolError):
        limit.check(1e5, first=False)


def test_updates_that_are_zero_are_usual() -> None:
    limit = NormLimit(10.0)
    for _ in range(5):
        limit.check(0.0, first=False)
    limit.check(1.0, first=False)


@pytest.mark.parametrize("factor", [None, 10.0])
@pytest.mark.parametrize("norm", [1e19, math.inf, math.nan])
def test_what_is_absurd_is_always_refused(factor: float | None, norm: float) -> None:
    limit = NormLimit(factor)
    with pytest.raises(ProtocolError, match="left out"):
        limit.check(norm, first=True)
    assert limit.knows_nothing


def test_a_factor_must_make_sense() -> None:
    for factor in (1.0, 0.0, -3.0, math.nan):
        with pytest.raises(SettingError, match="max_norm above 1"):
            NormLimit(factor)

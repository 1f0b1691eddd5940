"""Finite or not, also where the sum of finite numbers is not."""

from __future__ import annotations

import math

import pytest
import torch

from fl_lowrank.types import FLOAT_DTYPES, all_finite


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_all_finite(dtype: torch.dtype) -> None:
    largest = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert not bool(largest.sum().isfinite())
    assert all_finite(largest)
    assert all_finite(torch.zeros(0, dtype=dtype))
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.ones(100, dtype=dtype)
        x[50] = bad
        assert not all_finite(x)
    both = torch.tensor([math.inf, -math.inf], dtype=dtype)
    assert not all_finite(both)

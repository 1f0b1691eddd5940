"""check_input: what is refused, and what only looks as if it should be."""

from __future__ import annotations

import math

import pytest
import torch

from fl_lowrank.errors import InputError
from fl_lowrank.types import FLOAT_DTYPES, all_finite, check_input


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_sums_that_overflow_are_no_infinities(dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max
    for x in (torch.full((1000,), top, dtype=dtype), torch.zeros(0, dtype=dtype)):
        assert all_finite(x)
        assert torch.equal(check_input("x", x), x)
        assert all_finite(-x)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(
    "bad", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]]
)
def test_bad_entries_are_counted(bad: list[float], dtype: torch.dtype) -> None:
    for fill in (0.0, torch.finfo(dtype).max):
        x = torch.full((40, 30), fill, dtype=dtype)
        x[7, : len(bad)] = torch.tensor(bad, dtype=dtype)
        for given in (x, x.T, x.requires_grad_()):
            assert not all_finite(given)
            with pytest.raises(InputError, match=f"x: .*found {len(bad)} NaN"):
                check_input("x", given)


def test_gradients_are_cut_off() -> None:
    assert not check_input("x", torch.ones(3, requires_grad=True)).requires_grad
    with pytest.raises(InputError, match=r"x: expected float16.*torch\.int64"):
        check_input("x", torch.arange(3))

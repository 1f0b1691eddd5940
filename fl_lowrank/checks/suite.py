"""The list of laws, where each is tried, and all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from ..types import Compressor, Shape
from .additive import check_add_equals_sum_of_decodes
from .domain import (
    check_handles_scalar_empty_and_one,
    check_large_and_tiny_numbers,
    check_rejects_nan_and_inf,
    check_zero_maps_to_zero,
)
from .examples import DTYPES, SHAPES
from .form import (
    check_accumulate_equals_sum_of_decodes,
    check_decodes_from_bytes_alone,
    check_guarantee_is_stated,
    check_input_untouched,
    check_keeps_shape_and_dtype,
    check_same_rng_same_bytes,
    check_text_rebuilds_it,
)
from .memory import (
    check_state_is_flat_and_stable_in_shape,
    check_state_that_no_longer_fits_restarts,
)
from .sizes import check_bytes_below_stated_bound
from .statistics import (
    FEW_ENTRIES,
    check_contraction_below_1_minus_delta,
    check_norm_nonincreasing,
    check_scaling_equivariant,
    check_second_moment_below_zeta,
    check_unbiased_within_5_sigma,
    check_variance_is_not_zero_off_grid,
)

Law = Callable[[Compressor, Shape, torch.dtype, torch.device | str], None]

#: Laws of one shape and dtype, tried on all of them.
LAWS: tuple[Law, ...] = (
    check_text_rebuilds_it,
    check_guarantee_is_stated,
    check_decodes_from_bytes_alone,
    check_keeps_shape_and_dtype,
    check_input_untouched,
    check_same_rng_same_bytes,
    check_state_is_flat_and_stable_in_shape,
    check_state_that_no_longer_fits_restarts,
    check_zero_maps_to_zero,
    check_handles_scalar_empty_and_one,
    check_rejects_nan_and_inf,
    check_large_and_tiny_numbers,
    check_accumulate_equals_sum_of_decodes,
    check_add_equals_sum_of_decodes,
    check_bytes_below_stated_bound,
    check_norm_nonincreasing,
    check_scaling_equivariant,
    check_variance_is_not_zero_off_grid,
)
SHAPELESS_LAWS = (check_text_rebuilds_it, check_handles_scalar_empty_and_one)
#: Laws about means over many draws, tried on a few shapes.
STATISTICAL_LAWS: tuple[Law, ...] = (
    check_unbiased_within_5_sigma,
    check_second_moment_below_zeta,
    check_contraction_below_1_minus_delta,
)


def grid(
    law: Law, shapes: Iterable[Shape] = SHAPES, dtypes: Iterable[torch.dtype] = DTYPES
) -> Iterator[tuple[Shape, torch.dtype]]:
    """Say where a law is tried.

    Laws that look at no shape, or at small shapes of their own, are tried on one.
    Statistical ones are tried where means are nearly normal: in float32 on the first
    and last of such shapes, in other dtypes on the last. The ends of the dtype are
    tried on these too, and on the first of all.
    """
    shapes = list(shapes)
    many = [s for s in shapes if math.prod(s) >= FEW_ENTRIES]
    ends = many[:: max(len(many) - 1, 1)]
    if law in SHAPELESS_LAWS:
        shapes = shapes[:1]
    elif law is check_large_and_tiny_numbers:
        shapes = [*shapes[:1], *ends]
    elif law in STATISTICAL_LAWS:
        shapes = ends
    for shape in shapes:
        for dtype in dtypes:
            everywhere = law not in STATISTICAL_LAWS or dtype == torch.float32
            if everywhere or shape == shapes[-1]:
                yield shape, dtype


def check_law(
    law: Law,
    compressor: Compressor,
    shapes: Iterable[Shape] = SHAPES,
    dtypes: Iterable[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Try one law on its grid; gives a line for each failure."""
    failures = []
    for shape, dtype in grid(law, shapes, dtypes):
        try:
            law(compressor, shape, dtype, device)
        except AssertionError as error:
            failures.append(f"{law.__name__}: {error}")
    return failures


def check_all(
    compressor: Compressor,
    shapes: Iterable[Shape] = SHAPES,
    dtypes: Iterable[torch.dtype] = DTYPES,
    device: torch.device | str = "cpu",
    except_laws: Iterable[Law] = (),
) -> None:
    """Try every law; all failures are reported together.

    Parameters
    ----------
    compressor : Compressor
        What to test.
    shapes, dtypes, device
        Where to test it.
    except_laws : iterable of functions
        Laws that the compressor does not claim, such as `check_scaling_equivariant`
        for one with an absolute threshold.

    Raises
    ------
    AssertionError
        With one line for each law, shape and dtype that fails.
    """
    skipped = set(except_laws)
    shapes, dtypes = list(shapes), list(dtypes)
    failures = [
        line
        for law in (*LAWS, *STATISTICAL_LAWS)
        if law not in skipped
        for line in check_law(law, compressor, shapes, dtypes, device)
    ]
    if failures:
        msg = f"{compressor} breaks its contract:\n" + "\n".join(failures)
        raise AssertionError(msg)

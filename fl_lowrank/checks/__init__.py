"""The contract of a compressor, as functions that anyone may call.

Each law is a function ``check_<law>(compressor, shape, dtype, device)`` that returns
nothing, or raises `AssertionError` with the compressor, the tensor and what is wrong.
`check_all` runs all of them and reports every failure at once::

    from fl_lowrank import checks
    checks.check_all(MyCompressor(bits=3))
    checks.check_guarantee_on(MyCompressor(bits=3), update["conv1.weight"])

A compressor that makes a payload kind of its own first puts it into both tables of
`fl_lowrank.decoders` (``DECODERS[KIND] = MyCompressor``, ``KINDS[KIND.code] = KIND``)
and its name into `fl_lowrank.compressors.COMPRESSORS`.
"""

from __future__ import annotations

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
from .guarantees import check_guarantee_on
from .memory import (
    check_state_is_flat_and_stable_in_shape,
    check_state_that_no_longer_fits_restarts,
)
from .sizes import byte_bound, check_bytes_below_stated_bound
from .statistics import (
    check_contraction_below_1_minus_delta,
    check_norm_nonincreasing,
    check_scaling_equivariant,
    check_second_moment_below_zeta,
    check_unbiased_within_5_sigma,
    check_variance_is_not_zero_off_grid,
)
from .suite import (
    LAWS,
    SHAPELESS_LAWS,
    STATISTICAL_LAWS,
    Law,
    check_all,
    check_law,
    grid,
)

__all__ = [
    "DTYPES",
    "LAWS",
    "SHAPELESS_LAWS",
    "SHAPES",
    "STATISTICAL_LAWS",
    "Law",
    "byte_bound",
    "check_accumulate_equals_sum_of_decodes",
    "check_add_equals_sum_of_decodes",
    "check_all",
    "check_bytes_below_stated_bound",
    "check_contraction_below_1_minus_delta",
    "check_decodes_from_bytes_alone",
    "check_guarantee_is_stated",
    "check_guarantee_on",
    "check_handles_scalar_empty_and_one",
    "check_input_untouched",
    "check_keeps_shape_and_dtype",
    "check_large_and_tiny_numbers",
    "check_law",
    "check_norm_nonincreasing",
    "check_rejects_nan_and_inf",
    "check_same_rng_same_bytes",
    "check_scaling_equivariant",
    "check_second_moment_below_zeta",
    "check_state_is_flat_and_stable_in_shape",
    "check_state_that_no_longer_fits_restarts",
    "check_text_rebuilds_it",
    "check_unbiased_within_5_sigma",
    "check_variance_is_not_zero_off_grid",
    "check_zero_maps_to_zero",
    "grid",
]

"""Arrays read and written in place have the bytes of Flower's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from strategies import replies

SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (5, 4), (2, 3, 4)]
DTYPES = ["float16", "float32", "float64", "int64", "uint8"]


def numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=shape) * 10 + 50
    return np.asarray(values).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_slices_make_the_array_that_flower_makes(
    shape: tuple[int, ...], dtype: str
) -> None:
    values = numbers(shape, dtype)
    like, wide = Array(values), torch.from_numpy(values.astype(np.float64))
    made = replies.array_of(torch.split(wide.reshape(-1), 3), like)
    assert made == like
    assert made.data == like.data
    assert made.numpy().shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_entries_are_read_in_row_major_order(
    shape: tuple[int, ...], dtype: str, order: str
) -> None:
    values = numbers(shape, dtype)
    entries = replies.entries_of(Array(np.asarray(values, order=order)))
    assert entries.dtype == values.dtype
    assert np.array_equal(entries, values.reshape(-1))


def test_large_arrays_are_not_copied() -> None:
    array = Array(numbers((300, 400), "float32"))
    entries = replies.entries_of(array)
    assert np.shares_memory(entries, np.frombuffer(array.data, np.uint8))
    assert not entries.flags.writeable


def test_numbers_beyond_a_dtype_become_infinite_without_a_warning() -> None:
    like = Array(np.zeros(2, np.float32))
    made = replies.array_of([torch.tensor([1e300, -1e300], dtype=torch.float64)], like)
    assert made.numpy().tolist() == [np.inf, -np.inf]


def test_a_record_that_fits_is_passed_on_and_others_are_converted() -> None:
    like = ArrayRecord(
        {"w": Array(numbers((3,), "float32")), "n": Array(numbers((), "int64"))}
    )
    same = ArrayRecord({"n": like["n"], "w": like["w"]})
    passed = replies.conformed(same, like)
    assert list(passed) == ["w", "n"]
    assert passed["w"].data is like["w"].data
    wide = ArrayRecord({k: Array(np.asarray(a.numpy() + 0.5)) for k, a in like.items()})
    found = replies.conformed(wide, like)
    assert {k: a.dtype for k, a in found.items()} == {"w": "float32", "n": "int64"}
    assert found["n"].numpy() == like["n"].numpy()  # the fraction is lost


def test_a_layout_is_read_off_a_record() -> None:
    record = ArrayRecord({"w": Array(numbers((2, 3), "float16"))})
    (layout,) = replies.layout_of(record).values()
    assert (layout.shape, layout.dtype) == ((2, 3), torch.float16)

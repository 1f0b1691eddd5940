"""Arrays of messages are read where they lie, and only if they are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from clients.arrays import layout_of_views, tensors_of, views_of
from fl_lowrank.errors import InputError
from fl_lowrank.updates import weighted_update
from fl_lowrank.wire import TensorLayout

WHOLE = Array(np.arange(4.0))


def view_of(array: Array) -> NDArray[Any]:
    return views_of(ArrayRecord({"a": array}))["a"]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.asarray(np.float16(3)),
        np.zeros((3, 0)),
        np.array([True, False]),
    ],
)
def test_values_are_those_that_flower_reads(values: NDArray[Any]) -> None:
    array = Array(values)
    found = view_of(array)
    assert found.dtype == values.dtype
    assert np.array_equal(found, array.numpy())
    copied = tensors_of(ArrayRecord({"a": array}))["a"]
    assert np.array_equal(copied.numpy(), values)
    assert copied.is_contiguous()
    assert layout_of_views({"a": found}) == {
        "a": TensorLayout(values.shape, copied.dtype)
    }


def test_nothing_is_copied_or_can_be_changed() -> None:
    found = view_of(WHOLE)
    assert np.shares_memory(found, np.frombuffer(WHOLE.data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1.0
    tensors_of(ArrayRecord({"a": WHOLE}))["a"][0] = 1.0
    assert found[0] == 0.0


@pytest.mark.parametrize(
    "array",
    [
        Array(np.zeros(2, ">f4")),
        Array(np.zeros(2, "datetime64[s]")),
        Array("float64", (4,), "another", WHOLE.data),
        *(
            Array("float64", (4,), "numpy.ndarray", data)
            for data in (b"", WHOLE.data[:20], WHOLE.data[:-3], WHOLE.data + bytes(8))
        ),
    ],
)
def test_all_else_is_refused(array: Array) -> None:
    with pytest.raises(InputError, match="array 'a' cannot be read"):
        view_of(array)


def test_an_update_is_computed_in_the_dtype_in_which_it_is_sent() -> None:
    before = {"a": np.float16([[1.0, 2.0]]), "b": np.asarray(2.0)}
    after = {"a": np.float16([[1.001, 5.0]]), "b": np.asarray(2.5)}
    layout = {
        "a": TensorLayout((1, 2), torch.float32),
        "b": TensorLayout((), torch.float64),
    }
    found = weighted_update(before, after, layout, 3.0)
    step = float(after["a"][0, 0]) - 1.0
    assert torch.equal(found["a"], torch.tensor([[step, 3.0]]) * 3.0)
    assert torch.equal(found["b"], torch.tensor(1.5, dtype=torch.float64))

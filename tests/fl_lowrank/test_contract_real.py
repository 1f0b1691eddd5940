"""The declared guarantees on real updates: what a client of the simulation sends.

One local epoch of the small network on scikit-learn's digits. The tensors differ as
those of models do: kernels, a wide matrix of low rank, biases.
"""

from __future__ import annotations

import functools

import pytest
from torch import Tensor

from benchmarks.updates import local_update
from fl_lowrank import checks
from fl_lowrank.types import Compressor
from simulations.data import load_dataset
from tests.instances import INSTANCES

#: Rows of the large matrix that are used: random compressors are sampled 200 times.
NUM_ROWS = 4


@functools.cache
def update() -> dict[str, Tensor]:
    found = local_update(
        "digits-cnn", load_dataset("digits", 400), lr=0.1, batch_size=16
    )
    return found | {"6.weight": found["6.weight"][:NUM_ROWS].clone()}


@pytest.mark.parametrize("compressor", INSTANCES, ids=str)
def test_the_guarantee_holds_on_a_real_update(compressor: Compressor) -> None:
    for name, value in update().items():
        checks.check_guarantee_on(compressor, value, name)

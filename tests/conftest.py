"""What every test shares: torch on one thread, so that suites may run side by side."""

from __future__ import annotations

import gc

import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what thousands of tests are made of out of the collector's rounds.

    Flower collects garbage with each array that it converts, which would take a second
    of each of them.
    """
    gc.collect()
    gc.freeze()

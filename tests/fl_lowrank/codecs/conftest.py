"""Damage to bytes, the same for every decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

NUM_MUTATIONS = 2000
Mutate = Callable[[bytes, np.random.Generator], Iterator[bytes]]


def _mutate(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    for index in range(NUM_MUTATIONS):
        damaged = bytearray(data)
        match index % 5:
            case 0 | 1:  # one or two bits, as often near the head as anywhere
                for _ in range(1 + index % 2):
                    end = len(damaged) if index % 10 < 5 else min(len(damaged), 24)
                    damaged[rng.integers(end)] ^= 1 << int(rng.integers(8))
            case 2:
                damaged = damaged[: rng.integers(len(damaged))]
            case 3:
                damaged += rng.bytes(int(rng.integers(1, 6)))
            case _:
                start = int(rng.integers(len(damaged)))
                damaged[start : start + 4] = rng.bytes(int(rng.integers(1, 8)))
        yield bytes(damaged)


@pytest.fixture
def mutations() -> Mutate:
    """Return the generator of 2,000 damaged copies of non-empty bytes."""
    return _mutate

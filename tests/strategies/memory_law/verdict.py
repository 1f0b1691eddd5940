"""What the oracle finds wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .shadow import Vector

#: Agreement that the protocol promises, relative to the largest number involved.
TOLERANCE = 1e-6
SERVER = "server"


@dataclass(frozen=True)
class Violation:
    """One breach of a law.

    ``memory``, ``ids`` and ``tickets`` are a client's; ``sum`` and ``step`` those of
    what was applied; ``accept`` and ``reset`` are about what the server decides;
    ``agreement`` compares the two ends after quiet rounds.
    """

    law: str
    text: str

    def __str__(self) -> str:
        return f"{self.law}: {self.text}"


class Verdict:
    """All violations of a run, and how near to one the rest was."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.worst = 0.0
        self._scales: dict[str, float] = {}

    def breach(self, law: str, text: str) -> None:
        self.violations.append(Violation(law, text))

    def scale_with(self, client: str, *values: Vector) -> None:
        """Note numbers of a client, to the largest of which errors are relative."""
        largest = max(float(np.abs(v).max(initial=0.0)) for v in values)
        for key in (client, SERVER):
            self._scales[key] = max(self._scales.get(key, 0.0), largest)

    def close(
        self, who: str, law: str, what: str, found: Vector, wanted: Vector
    ) -> None:
        distance = float(np.abs(found - wanted).max(initial=0.0))
        relative = distance / self._scales.get(who, 1.0)
        if relative > TOLERANCE:
            self.breach(law, f"{who}: {what} is off by {relative:.2g}")
        else:
            self.worst = max(self.worst, relative)


def flat(tensors: Mapping[str, Tensor], zero: Vector) -> Vector:
    """Join tensors to one dense float64 vector; an empty memory is zero."""
    if not tensors:
        return zero
    parts = [t.numpy().reshape(-1).astype(float) for t in tensors.values()]
    return np.concatenate(parts)

"""Without memory, and classical error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..types import Guarantee
from .base import Feedback, Tensors, refuse_expanding


@dataclass(frozen=True)
class Plain(Feedback):
    """No memory: what the compressor drops is gone."""

    name: ClassVar[str] = "plain"
    has_memory: ClassVar[bool] = False
    slots: ClassVar[tuple[str, ...]] = ()

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the update."""
        del memory
        return {}, dict(update)

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Nothing to settle."""
        del memory, sent, applied
        return {}

    def refusal(self, guarantee: Guarantee) -> None:
        """Refuse nothing: bias without memory is the user's choice."""
        del guarantee


@dataclass(frozen=True)
class EF(Feedback):
    """Error feedback: what was dropped is added to the next update.

    The sum of all updates equals the sum of all applied messages plus the memory.
    Needs ``Contractive``. With a constant step it stops at a floor on heterogeneous
    data; with local training and sampled clients it is the most robust choice.

    References
    ----------
    F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-Bit Stochastic Gradient Descent",
    Interspeech 2014; S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error Feedback
    Fixes SignSGD", ICML 2019, arXiv 1901.09847.
    """

    name: ClassVar[str] = "ef"

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the error and the update together."""
        total = {k: memory[k] + u for k, u in update.items()}
        return total, dict(total)

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Subtract what has arrived."""
        if not applied:
            return dict(memory)
        return {k: m - sent[k].to(m) for k, m in memory.items()}

    def refusal(self, guarantee: Guarantee) -> str | None:
        """Refuse unbiased compressors with a variance of 1 or more."""
        return refuse_expanding(guarantee)

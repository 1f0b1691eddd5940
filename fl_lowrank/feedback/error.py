"""Without memory, and classical error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError, SettingError
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


_PRECISIONS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class EF(Feedback):
    """Error feedback: what was dropped is added to the next update.

    The sum of all updates equals the sum of all applied messages plus the memory.
    Needs ``Contractive``. With a constant step it stops at a floor on heterogeneous
    data; with local training and sampled clients it is the most robust choice.

    Parameters
    ----------
    precision : str, optional
        ``float16``, ``bfloat16`` or ``float32``, in which the error is stored; left
        out, that of the updates. Sums are computed in the updates' own. What is stored
        is what is sent and what is later added: error and update together are rounded
        once, before they are compressed, so that the two ends never differ, and the
        law above holds for updates that are off by at most 2^-8 (bfloat16) or 2^-11
        (float16; or 2^-25 absolutely) of the sum that was rounded; what remains after
        a message has arrived is rounded in the same way. Only one end has this memory;
        the feedbacks whose two ends must agree have no such setting.

    References
    ----------
    F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-Bit Stochastic Gradient Descent",
    Interspeech 2014; S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error Feedback
    Fixes SignSGD", ICML 2019, arXiv 1901.09847. Difference: the precision.
    """

    name: ClassVar[str] = "ef"
    words: ClassVar[tuple[str, ...]] = ("precision",)

    precision: str | None = None

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in _PRECISIONS:
            msg = (
                f"ef: expected precision {', '.join(_PRECISIONS)}, found "
                f"{self.precision!r}; or leave it out"
            )
            raise SettingError(msg)

    def init(self, like: Tensors) -> dict[str, Tensor]:
        """Zero memory, in the precision in which it is stored."""
        return {k: self._stored(v) for k, v in super().init(like).items()}

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the error and the update together.

        Raises
        ------
        InputError
            If the sum is too large for the precision.
        """
        total = {k: memory[k] + u for k, u in update.items()}
        stored = {k: self._stored(v) for k, v in total.items()}
        return stored, {k: v.to(total[k]) for k, v in stored.items()}

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Subtract what has arrived."""
        if not applied:
            return dict(memory)
        if self.precision is None:
            return {k: m - sent[k].to(m) for k, m in memory.items()}
        return {k: self._stored(m.to(sent[k]) - sent[k]) for k, m in memory.items()}

    def refusal(self, guarantee: Guarantee) -> str | None:
        """Refuse unbiased compressors with a variance of 1 or more."""
        return refuse_expanding(guarantee)

    def _stored(self, x: Tensor) -> Tensor:
        if self.precision is None:
            return x
        stored = x.to(_PRECISIONS[self.precision])
        if bool(stored.isinf().any()):
            msg = (
                f"ef: error and update together are up to {float(x.abs().max()):.3g} "
                f"in weighted units (number of examples times update over step), "
                f"which {self.precision} cannot hold; use precision=bfloat16, or "
                "leave it out"
            )
            raise InputError(msg)
        return stored

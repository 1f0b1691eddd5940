"""EF21 and EF21-SGDM: both ends remember the same vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import SettingError
from ..types import Guarantee
from .base import Tensors, Tracking, joined, refuse_expanding, slot


@dataclass(frozen=True)
class EF21(Tracking):
    """Both ends remember the same vector; what is sent is the distance to it.

    The receiver's sum of memories is its estimate of the sum of updates. Needs
    ``Contractive``. Converges linearly on heterogeneous quadratics, for full
    participation; with sampled clients the receiver's estimate is stale.

    References
    ----------
    P. Richtarik, I. Sokolov, I. Fatkhullin, "EF21: A New, Simpler, Theoretically
    Better, and Practically Faster Error Feedback", NeurIPS 2021, arXiv 2106.05203,
    algorithm 2. Difference: with sampled clients the estimate is multiplied by the
    share of the members' weight that took part.
    """

    name: ClassVar[str] = "ef21"

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the distance between the update and the memory."""
        return dict(memory), {k: u - memory[k] for k, u in update.items()}

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Move the memory as the receiver did."""
        if not applied:
            return dict(memory)
        return dict(memory) | self.moved(memory, sent)

    def refusal(self, guarantee: Guarantee) -> str | None:
        """Refuse unbiased compressors with a variance of 1 or more."""
        return refuse_expanding(guarantee)


@dataclass(frozen=True)
class EF21SGDM(EF21):
    """EF21 on a running mean of the updates, which averages their noise out.

    The client keeps ``v = (1 - momentum) v + momentum u``, from v = u at first, and
    sends the distance between v and the shared vector. v moves whether the message
    arrives or not: it holds the client's own updates alone. Wire cost: as EF21.

    Parameters
    ----------
    momentum : float
        Weight of the newest update, in (0, 1]; 1 is EF21.

    References
    ----------
    I. Fatkhullin, A. Tyurin, P. Richtarik, "Momentum Provably Improves Error
    Feedback!", NeurIPS 2023, arXiv 2305.15155, algorithm 1.
    """

    name: ClassVar[str] = "ef21sgdm"
    slots: ClassVar[tuple[str, ...]] = ("", "mean")

    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.momentum <= 1.0:
            msg = f"ef21sgdm: expected momentum in (0, 1], found {self.momentum}"
            raise SettingError(msg)

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the distance between the running mean and the shared vector."""
        shared, mean = slot(memory, "", update), slot(memory, "mean", update)
        if any(bool(v.any()) for v in mean.values()):
            mean = {k: v + self.momentum * (update[k] - v) for k, v in mean.items()}
        else:
            mean = dict(update)  # a mean of nothing starts at the first update
        under_way = joined({"": shared, "mean": mean})
        return under_way, {k: v - shared[k] for k, v in mean.items()}

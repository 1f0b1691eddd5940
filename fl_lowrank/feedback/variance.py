"""Methods for unbiased compressors that reduce the compression's variance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import SettingError
from ..types import Guarantee
from .base import (
    Feedback,
    Tensors,
    Tracking,
    joined,
    refuse_biased,
    slot,
    variance_of,
)


def _check_rate(who: str, rate: float | None) -> None:
    if rate is not None and not 0.0 < rate <= 1.0:
        msg = f"{who}: expected rate in (0, 1], found {rate}; or leave it out"
        raise SettingError(msg)


def _known(who: str, rate: float | None) -> float:
    if rate is None:
        msg = f"{who}: expected a rate; write {who}(rate=...) or use fitted(guarantee)"
        raise SettingError(msg)
    return rate


@dataclass(frozen=True)
class Diana(Feedback):
    """Both ends learn a shift h; what is sent is the distance to it.

    The shift moves by ``rate`` times what was sent, so that a random compressor's
    variance vanishes as the shift approaches the update. The receiver's estimate,
    mean of the shifts plus mean of what arrived, is unbiased. Needs ``Unbiased``.

    Parameters
    ----------
    rate : float, optional
        Step of the shifts, in (0, 1]. Left out, it is ``1 / (1 + omega)``, the largest
        that the theory allows.

    References
    ----------
    K. Mishchenko, E. Gorbunov, M. Takac, P. Richtarik, "Distributed Learning with
    Compressed Gradient Differences", 2019, arXiv 1901.09269, algorithm 1.
    """

    name: ClassVar[str] = "diana"
    has_share: ClassVar[bool] = True
    over_members: ClassVar[bool] = True

    rate: float | None = None

    def __post_init__(self) -> None:
        _check_rate(self.name, self.rate)

    def fitted(self, guarantee: Guarantee) -> Diana:
        """Choose the rate by the compressor's variance."""
        omega = variance_of(guarantee)
        if self.rate is not None or omega is None:
            return self
        return replace(self, rate=1.0 / (1.0 + omega))

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send the distance between the update and the shift."""
        return dict(memory), {k: u - memory[k] for k, u in update.items()}

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Move the shift as the receiver did."""
        if not applied:
            return dict(memory)
        return self.moved(memory, sent)

    def share(self, sent: Tensors) -> dict[str, Tensor]:
        """Give the move of the shift."""
        rate = _known(self.name, self.rate)
        return {k: rate * v for k, v in sent.items()}

    def estimate(
        self, total: Tensors, arrived: Tensors, weight: float, members: float
    ) -> dict[str, Tensor]:
        """Give the mean shift of all members plus the mean of what arrived."""
        return {
            k: v / weight + (total[k] / members if k in total else 0.0)
            for k, v in arrived.items()
        }

    def refusal(self, guarantee: Guarantee) -> str | None:
        """Refuse biased compressors."""
        return refuse_biased(guarantee)


@dataclass(frozen=True)
class Dasha(Tracking):
    """Both ends remember an estimate g; what is sent is the change of the update.

    With h the update that g was last told of, ``u - h - rate (g - h)`` is sent: the
    last term slowly removes the error that compression left in g. Needs ``Unbiased``,
    and full gradients (the deterministic form, which stores the last one). A message
    that is lost leaves g and h as they were.

    Parameters
    ----------
    rate : float, optional
        In (0, 1]. Left out, it is ``1 / (2 omega + 1)``, as in the theory.

    References
    ----------
    A. Tyurin, P. Richtarik, "DASHA: Distributed Nonconvex Optimization with
    Communication Compression, Optimal Oracle Complexity, and No Client
    Synchronization", ICLR 2023, arXiv 2202.01268, algorithm 1 (gradient setting).
    """

    name: ClassVar[str] = "dasha"
    slots: ClassVar[tuple[str, ...]] = ("", "told", "newest")

    rate: float | None = None

    def __post_init__(self) -> None:
        _check_rate(self.name, self.rate)

    def fitted(self, guarantee: Guarantee) -> Dasha:
        """Choose the rate by the compressor's variance."""
        omega = variance_of(guarantee)
        if self.rate is not None or omega is None:
            return self
        return replace(self, rate=1.0 / (2.0 * omega + 1.0))

    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Send how the update has changed, and part of the estimate's error."""
        rate = _known(self.name, self.rate)
        shared, told = slot(memory, "", update), slot(memory, "told", update)
        to_send = {
            k: u - told[k] - rate * (shared[k] - told[k]) for k, u in update.items()
        }
        return joined({"": shared, "told": told, "newest": update}), to_send

    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Move the estimate as the receiver did, and note what it was told."""
        if not applied:
            return dict(memory)
        shared = self.moved(memory, sent)
        newest = slot(memory, "newest", sent)
        return joined({"": shared, "told": newest, "newest": newest})

    def refusal(self, guarantee: Guarantee) -> str | None:
        """Refuse biased compressors."""
        return refuse_biased(guarantee)

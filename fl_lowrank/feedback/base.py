"""What a memory around a compressor is: functions for its two ends, and no state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from ..errors import SettingError
from ..types import Exact, Guarantee, NoGuarantee, Shape, Unbiased, weakest

Tensors: TypeAlias = Mapping[str, Tensor]


class Feedback(ABC):
    """A memory around a compressor; subclasses are frozen dataclasses.

    ``prepare`` gives the memory to keep while the message is under way, and what to
    compress; ``settle`` gives the memory once its fate is known. Both ends of a
    method stand here: ``share`` and ``estimate`` are the receiver's.
    """

    name: ClassVar[str]
    #: True if the receiver keeps the sum of all clients' shared vectors.
    has_share: ClassVar[bool] = False
    #: True if there is anything to remember.
    has_memory: ClassVar[bool] = True
    #: True if the mean is to be taken over all members' vectors even where those of the
    #: senders are known by themselves.
    over_members: ClassVar[bool] = False
    #: What is remembered of each tensor; "" is the vector that ``share`` moves.
    slots: ClassVar[tuple[str, ...]] = ("",)
    #: Settings that are words; all others are numbers.
    words: ClassVar[tuple[str, ...]] = ()

    def init(self, like: Tensors) -> dict[str, Tensor]:
        """Zero memory for updates of these shapes."""
        return {
            _key(slot, k): torch.zeros_like(v)
            for slot in self.slots
            for k, v in like.items()
        }

    def fits(self, memory: Tensors, shapes: Mapping[str, Shape]) -> bool:
        """Whether a memory is one of this feedback for tensors of these shapes."""
        wanted = {
            _key(slot, k): shape for slot in self.slots for k, shape in shapes.items()
        }
        return {k: tuple(v.shape) for k, v in memory.items()} == wanted

    @abstractmethod
    def prepare(
        self, memory: Tensors, update: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the memory under way and what to compress."""

    @abstractmethod
    def settle(
        self, memory: Tensors, sent: Tensors, *, applied: bool
    ) -> dict[str, Tensor]:
        """Give the memory after the message ``sent`` was applied, or lost."""

    def share(self, sent: Tensors) -> dict[str, Tensor]:
        """Give what the receiver adds to its sum; nothing unless `has_share`."""
        del sent
        return {}

    def moved(self, shared: Tensors, sent: Tensors) -> dict[str, Tensor]:
        """Give a sender's vector after a message, bit for bit as the sender has it."""
        return {k: shared[k] + v.to(shared[k]) for k, v in self.share(sent).items()}

    def estimate(
        self, total: Tensors, arrived: Tensors, weight: float, members: float
    ) -> dict[str, Tensor]:
        """Give the receiver's estimate of the mean update.

        Parameters
        ----------
        total : Tensors
            Sum of the shared vectors before this round; empty for none.
        arrived : Tensors
            Sum of what was sent in this round.
        weight : float
            Weight of its senders.
        members : float
            Weight of all clients that have a vector in the sum, these senders
            included.
        """
        del total, members
        return {k: v / weight for k, v in arrived.items()}

    @abstractmethod
    def refusal(self, guarantee: Guarantee) -> str | None:
        """Say why a compressor with this guarantee cannot be used; None if it can."""

    def fitted(self, guarantee: Guarantee) -> Feedback:
        """Fill in settings that depend on the compressor's guarantee."""
        del guarantee
        return self

    def __str__(self) -> str:
        given = (
            f"{f.name}={value}"
            for f in fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
            if (value := getattr(self, f.name)) is not None
        )
        text = ", ".join(given)
        return f"{self.name}({text})" if text else self.name


class Tracking(Feedback):
    """Both ends move one vector by what is sent; its mean estimates the update."""

    has_share: ClassVar[bool] = True

    def share(self, sent: Tensors) -> dict[str, Tensor]:
        """Give the move of the vector."""
        return dict(sent)

    def estimate(
        self, total: Tensors, arrived: Tensors, weight: float, members: float
    ) -> dict[str, Tensor]:
        """Give the mean of all members' moved vectors, times the share that took part.

        The factor keeps old updates from being applied in full again each round when
        clients are sampled.
        """
        factor = weight / members**2
        return {
            k: (total[k] + v if k in total else v) * factor for k, v in arrived.items()
        }


def check_pair(feedback: Feedback, guarantee: Guarantee, what: str) -> None:
    """Refuse a compressor that a feedback cannot work with.

    Raises
    ------
    SettingError
        With the reason, and what to use instead.
    """
    reason = feedback.refusal(weakest([guarantee]))
    if reason is not None:
        msg = f'feedback="{feedback}" cannot be used with {what}: {reason}'
        raise SettingError(msg)


def slot(memory: Tensors, name: str, like: Tensors) -> dict[str, Tensor]:
    """Take the vectors of one slot out of a memory, under the names of ``like``."""
    return {k: memory[_key(name, k)] for k in like}


def joined(slots: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Make a memory of its slots."""
    return {_key(name, k): v for name, part in slots.items() for k, v in part.items()}


def refuse_expanding(guarantee: Guarantee) -> str | None:
    """Refuse compressors whose error can be larger than the input."""
    match guarantee:
        case Unbiased() if guarantee.expands:
            return (
                f"its variance is up to {guarantee.omega:.3g} times its input, so what "
                "is remembered would grow; write shrunk(inner=...) around it"
            )
        case NoGuarantee(reason, True):
            return (
                f"its error can be larger than its input ({reason}), so what is "
                "remembered would grow; write shrunk(inner=...) around what is unbiased"
            )
    return None


def variance_of(guarantee: Guarantee) -> float | None:
    """Give omega of an unbiased compressor; None for one that is not."""
    match guarantee:
        case Exact():
            return 0.0
        case Unbiased():
            return guarantee.omega
    return None


def refuse_biased(guarantee: Guarantee) -> str | None:
    """Refuse compressors that are not unbiased."""
    if variance_of(guarantee) is not None:
        return None
    found = guarantee.reason if isinstance(guarantee, NoGuarantee) else str(guarantee)
    return (
        f"it needs unbiased compression everywhere, found: {found}; use randk, "
        'natural_stochastic, sparse_dithering_unbiased, or feedback="ef21"'
    )


def _key(slot_name: str, name: str) -> str:
    return f"{slot_name}/{name}" if slot_name else name

"""What is remembered around a compressor; both ends of each method in one place.

A memory is a ``dict[str, Tensor]`` in the units of the update, and a value: nothing
here changes its arguments. A feedback is three functions.

======  ================  =============================  ====================  =====
name    prepare(mem, u)   settle(mem, c, applied=True)   settle(mem, c, False)  share
======  ================  =============================  ====================  =====
plain   u                 none                           none                  none
ef      mem + u           mem + u - c                    mem + u               none
ef21    u - mem           mem + c                        mem                   c
======  ================  =============================  ====================  =====

``c`` is what the other end decodes from the message of the last `prepare`. It is
settled when the sender learns whether that message was applied, never before.
``share`` is what the receiver adds to its running sum of all memories.

References
----------
F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-Bit Stochastic Gradient Descent",
Interspeech 2014, and S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error
Feedback Fixes SignSGD", ICML 2019, arXiv 1901.09847 (error feedback). P. Richtarik,
I. Sokolov, I. Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and Practically
Faster Error Feedback", NeurIPS 2021, arXiv 2106.05203, algorithm 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .errors import SettingError

Tensors: TypeAlias = Mapping[str, Tensor]


class Feedback(ABC):
    """A memory around a compressor.

    ``prepare`` gives the memory to keep while the message is under way, and what to
    compress; ``settle`` gives the memory once its fate is known.
    """

    name: ClassVar[str]
    #: True if the receiver keeps the sum of all memories.
    has_share: ClassVar[bool] = False
    #: True if there is anything to remember.
    has_memory: ClassVar[bool] = True

    def init(self, like: Tensors) -> dict[str, Tensor]:
        """Zero memory for updates of these shapes."""
        return {k: torch.zeros_like(v) for k, v in like.items()}

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


class Plain(Feedback):
    """No memory: what the compressor drops is gone."""

    name: ClassVar[str] = "plain"
    has_memory: ClassVar[bool] = False

    def init(self, like: Tensors) -> dict[str, Tensor]:
        """Nothing."""
        del like
        return {}

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


class EF(Feedback):
    """Error feedback: what was dropped is added to the next update.

    The sum of all updates equals the sum of all applied messages plus the memory.
    Needs ``Contractive``. With a constant step it stops at a floor on heterogeneous
    data; with local training and sampled clients it is the most robust choice.
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


class EF21(Feedback):
    """Both ends remember the same vector; what is sent is the distance to it.

    The receiver's sum of memories is its estimate of the sum of updates. Needs
    ``Contractive``. Converges linearly on heterogeneous quadratics, for full
    participation; with sampled clients the receiver's estimate is stale.
    """

    name: ClassVar[str] = "ef21"
    has_share: ClassVar[bool] = True

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
        return {k: m + sent[k].to(m) for k, m in memory.items()}

    def share(self, sent: Tensors) -> dict[str, Tensor]:
        """Give the move of the memory."""
        return dict(sent)


#: Every feedback that a text may name.
FEEDBACKS: dict[str, Feedback] = {f.name: f for f in (Plain(), EF(), EF21())}


def named(name: str) -> Feedback:
    """Give the feedback of this name.

    Raises
    ------
    SettingError
        If there is none.
    """
    if name not in FEEDBACKS:
        msg = f"feedback: there is no {name!r}; there are {', '.join(FEEDBACKS)}"
        raise SettingError(msg)
    return FEEDBACKS[name]

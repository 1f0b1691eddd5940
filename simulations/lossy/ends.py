"""Both ends of EF21's memories, whatever the rules by which they move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.feedback import EF21, Tensors
from fl_lowrank.types import State

from ..loopback import Fault

#: Feedbacks work on named tensors; here there is one.
VECTOR = "x"


@dataclass(frozen=True)
class Saved:
    """What a client finds when it is started again.

    Attributes
    ----------
    memory : Tensors
        Of the feedback.
    codec : State
        Of the compressor.
    epoch, base : int
        Reset and last settled turn that the memory belongs to; 0 for an empty memory.
    pending : tuple of int and Tensors, optional
        Id of the turn whose fate is unknown, and what it sent.
    """

    memory: Tensors
    codec: State
    epoch: int = 0
    base: int = 0
    pending: tuple[int, Tensors] | None = None


@dataclass
class Ends(ABC):
    """The memories of all clients, and the server's sum of them.

    Attributes
    ----------
    feedback : EF21
        The memory around the compressor.
    compressor : fll.Compressor
        Applied to each client's vector.
    num_clients, dimension : int
        Number of memories and their length.
    seed : int
        Of the compressor.
    """

    feedback: EF21
    compressor: fll.Compressor
    num_clients: int
    dimension: int
    seed: int = 0
    saved: list[Saved] = field(init=False)

    def __post_init__(self) -> None:
        self.saved = [self._empty() for _ in range(self.num_clients)]

    def exchange(
        self,
        number: int,
        gradients: Tensor,
        asked: Iterable[int],
        faults: Sequence[Fault],
    ) -> Tensor | None:
        """Play one round.

        Parameters
        ----------
        number : int
            Of the round.
        gradients : Tensor
            Of all clients, float64, shape (n, d).
        asked : iterable of int
            Clients that are sent a request.
        faults : sequence of Fault
            What happens to each client. Delays and copies beyond the first count as
            one delivery; a client loses its memory whether it is asked or not.

        Returns
        -------
        Tensor or None
            The receiver's estimate of the mean gradient, None if nothing arrived. It
            is the mean of all members' memories, as in the paper; ``Compressed`` makes
            a step smaller by the share of the members that took part.
        """
        for i, fault in enumerate(faults):
            if fault.lose_memory:
                self.saved[i] = self._empty()
        return self._exchange(number, gradients, asked, faults)

    @abstractmethod
    def _exchange(
        self,
        number: int,
        gradients: Tensor,
        asked: Iterable[int],
        faults: Sequence[Fault],
    ) -> Tensor | None:
        """Play a round after memories were lost."""

    def _empty(self) -> Saved:
        zero = torch.zeros(self.dimension, dtype=torch.float64)
        return Saved(
            self.feedback.init({VECTOR: zero}), self.compressor.init(zero.shape)
        )

    def _take_turn(
        self, number: int, client: int, saved: Saved, gradient: Tensor
    ) -> tuple[Saved, Tensors]:
        """Compress a gradient: the memory under way, and what the receiver decodes."""
        memory, to_send = self.feedback.prepare(saved.memory, {VECTOR: gradient})
        rng = fll.rng.stream(self.seed, client, number)
        payload, codec = self.compressor.encode(to_send[VECTOR], saved.codec, rng)
        under_way = replace(saved, memory=memory, codec=codec)
        return under_way, {VECTOR: fll.decode(payload)}

    def _mean(self, total: Tensors, arrived: Tensor, num_members: int) -> Tensor:
        estimate = self.feedback.estimate(
            total, {VECTOR: arrived}, num_members, num_members
        )
        return estimate[VECTOR]


def replies(fault: Fault) -> bool:
    """Whether the server gets an answer from a client that it has reached."""
    return bool(fault.reply) and fault.crash != "before_save"

"""Who holds which samples, and the batches that agents draw from them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor

from fl_lowrank import rng

from ..errors import SimulationError


def share_out(num_samples: int, periods: Sequence[int], seed: int) -> list[Tensor]:
    """Share samples out at random, in proportion to the agents' power.

    Parameters
    ----------
    num_samples : int
        What there is.
    periods : Sequence[int]
        Steps from one batch to the next of each agent; its power is 1 / period.
    seed : int
        Of the shares.

    Returns
    -------
    list[Tensor]
        For each agent its samples' indices, disjoint, together all.
    """
    order = rng.stream(seed, "shares").bits32(num_samples).argsort(stable=True)
    powers = [Fraction(1, period) for period in periods]
    ends = [round(num_samples * end / sum(powers)) for end in accumulate(powers)]
    return [order[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def steps_in_epoch(
    shares: Sequence[Tensor], periods: Sequence[int], batch_size: int
) -> int:
    """Count the steps in which agents, together, see as many samples as there are.

    Parameters
    ----------
    shares : Sequence[Tensor]
        Indices of each agent's samples.
    periods : Sequence[int]
        Steps from one batch to the next of each agent.
    batch_size : int
        Of each agent.

    Returns
    -------
    int
        The number of steps.
    """
    return min(
        len(share) * period // batch_size
        for share, period in zip(shares, periods, strict=True)
    )


class Batches:
    """Each agent's endless walk through its samples, in a new order for each pass.

    Parameters
    ----------
    shares : Sequence[Tensor]
        Indices of each agent's samples.
    batch_size : int
        Samples in a batch; a batch may go on in the next pass.
    seed : int
        Of the orders.
    """

    def __init__(self, shares: Sequence[Tensor], batch_size: int, seed: int) -> None:
        smallest = min(len(share) for share in shares)
        if smallest < batch_size:
            raise SimulationError(
                f"--batch-size {batch_size}: an agent has only {smallest} samples; "
                "give fewer agents or smaller batches."
            )
        self._shares = shares
        self._batch_size = batch_size
        self._seed = seed
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def draw(self, agent: int, number: int) -> Tensor:
        """Give the indices of an agent's batch.

        Parameters
        ----------
        agent : int
            Which agent.
        number : int
            Which of its batches, from 0.

        Returns
        -------
        Tensor
            int64, shape (batch_size,).
        """
        size = len(self._shares[agent])
        parts, start, missing = [], number * self._batch_size, self._batch_size
        while missing:
            turn, at = divmod(start, size)
            part = self._order(agent, turn)[at : at + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return torch.cat(parts)

    def _order(self, agent: int, turn: int) -> Tensor:
        known, order = self._orders.get(agent, (-1, torch.empty(0)))
        if known != turn:
            share = self._shares[agent]
            bits = rng.stream(self._seed, "batches", agent, turn).bits32(len(share))
            order = share[bits.argsort(stable=True)]
            self._orders[agent] = turn, order
        return order

"""Consensus over compressed messages: CHOCO.

Each vertex i has a public copy h_i, which its neighbours hold too. At a step::

    q_i = C(x_i - h_i)                         sent to all neighbours
    h_i <- h_i + q_i                           at i and at its neighbours
    x_i <- x_i + gamma sum_j w_ij (h_j - h_i)  the mean of x is kept, whatever C does

References
----------
A. Koloskova, S. Stich, M. Jaggi, "Decentralized Stochastic Optimization and Gossip
Algorithms with Compressed Communication", ICML 2019, arXiv 1902.00340: algorithms 1
(CHOCO-Gossip) and 2 (CHOCO-SGD).

Differences: the public copies start from the initial parameters, which all vertices
have in common, and not from zero. Neighbours' copies are kept one by one and not as
their weighted sum (in float32 it let the mean drift by 6e-5 in 10^4 steps), so that
edges may be left out of a step. What rounding keeps back of x is kept, see `rest`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..compressors import BySize, Flat, Shrunk
from ..errors import SettingError
from ..grouping import Layout, layout_of
from ..mixing import Mixing
from ..model import ModelCodec
from ..rng import Rng
from ..spec import Rule
from ..types import Compressor, Contractive, Exact, Shape, State, Unbiased
from . import rest


@dataclass(frozen=True, eq=False)
class ChocoState:
    """What the vertices remember.

    Attributes
    ----------
    public : Tensor
        The public copies h, shape (n, d), like x.
    memories : tuple of State
        Of each vertex's compressor.
    rest : Tensor
        What rounding has kept back of x, shape (n, d): the mean of x + rest is kept.
    """

    public: Tensor
    memories: tuple[State, ...]
    rest: Tensor


@dataclass(frozen=True, eq=False)
class Choco:
    """Compressed consensus among all vertices of a graph.

    Wire cost: a vertex that mixes sends ``len(data)`` bytes over each of its edges,
    those that rest included, so that there is one public copy of it.

    Attributes
    ----------
    mixing : Mixing
        The graph and its weights.
    codec : ModelCodec
        See `contractive`.
    layout : Layout
        Tensors that make up a row of x, in this order, d entries together.
    gamma : float
        Step towards the neighbours' public copies, see `tune_gamma`.
    """

    mixing: Mixing
    codec: ModelCodec
    layout: Layout
    gamma: float

    def init(self, x: Tensor) -> ChocoState:
        """Start from x, which all vertices know of each other: equal rows, or zeros."""
        memory = self.codec.init(self.layout)
        nothing = torch.zeros_like(x, dtype=rest.DTYPE)
        return ChocoState(x.clone(), (memory,) * len(x), nothing)

    def step(
        self, x: Tensor, state: ChocoState, rng: Rng, active: Tensor | None = None
    ) -> tuple[Tensor, ChocoState, Tensor]:
        """Send, receive and mix once.

        Parameters
        ----------
        x : Tensor
            Shape (n, d); it may have been trained since the last step.
        state : ChocoState
            From `init` or the last step.
        rng : Rng
            Of this step; each vertex draws from a child stream.
        active : Tensor, optional
            Booleans, shape (edges,): the edges that mix; all if left out. Vertices
            without such an edge send nothing.

        Returns
        -------
        tuple of Tensor, ChocoState and Tensor
            x and the state afterwards, and the bytes of each vertex's message, int64,
            shape (n,).
        """
        first, second = self.mixing.topology.ends()
        ends = torch.cat((first, second))
        if active is not None:
            ends = ends[active.cpu().repeat(2)]
        public, memories = state.public.clone(), list(state.memories)
        sizes = torch.zeros(len(x), dtype=torch.int64)
        senders = sorted(set(ends.tolist()))
        for i in senders:
            update = rows_as_tensors(x[i] - public[i], self.layout)
            data, memories[i] = self.codec.encode(update, memories[i], rng.child(i))
            sizes[i] = len(data)
            received = ModelCodec.decode(data, layout_of(update))
            public[i] += torch.cat([q.reshape(-1) for q in received.values()]).to(x)
        mixed, kept = x.clone(), state.rest.clone()
        rest.gain(
            mixed,
            kept,
            lambda part: self.mixing.flow(public[:, part], active, self.gamma),
            torch.tensor(senders, dtype=torch.int64),
        )
        return mixed, ChocoState(public, tuple(memories), kept), sizes


def rows_as_tensors(row: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Cut a vector of d entries into the tensors of a layout, as views in its dtype."""
    parts = torch.split(row, [t.numel for t in layout.values()])
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(layout.items(), parts, strict=True)
    }


def contractive(codec: ModelCodec, layout: Layout) -> ModelCodec:
    """Make a codec contract: unbiased compressors are shrunk, others are checked.

    Raises
    ------
    SettingError
        If a compressor of it has no guarantee for the tensors it gets.
    """
    unbiased = set()
    for group in codec.groups(layout):
        used = _chosen(group.compressor, group.layout.shape)
        found = used.guarantee(group.layout.shape)
        if isinstance(found, Unbiased):
            unbiased.add(used)
        elif not isinstance(found, Exact | Contractive):
            msg = (
                f"CHOCO: expected a contractive or an unbiased compressor for "
                f"{group.names[0]!r}, found {group.compressor} with {found}; without a "
                "bound of its error agents may drift apart"
            )
            raise SettingError(msg)

    def fitted(compressor: Compressor) -> Compressor:
        if isinstance(compressor, BySize):
            small, large = fitted(compressor.small), fitted(compressor.large)
            return BySize(threshold=compressor.threshold, small=small, large=large)
        return _shrunk(compressor) if compressor in unbiased else compressor

    if isinstance(codec.rules, Compressor):
        return ModelCodec(fitted(codec.rules))
    rules = [Rule(rule.pattern, fitted(rule.compressor)) for rule in codec.rules]
    return ModelCodec("; ".join(map(str, rules)))


def _chosen(compressor: Compressor, shape: Shape) -> Compressor:
    """Give what is used for tensors of a shape."""
    while isinstance(compressor, BySize):
        compressor = compressor.choose(shape)
    return compressor


def _shrunk(compressor: Compressor) -> Compressor:
    # Outside of flat() it would keep tensors from being joined.
    if isinstance(compressor, Flat):
        return Flat(inner=Shrunk(compressor.inner))
    return Shrunk(compressor)

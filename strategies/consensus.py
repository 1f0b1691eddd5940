"""`Consensus`: neighbours mix their models along the edges of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from logging import INFO

from flwr.common import log
from torch import Tensor

from fl_lowrank.consensus import (
    Averaging,
    Flows,
    Rows,
    Tracking,
    contractive,
    due,
    periods_of,
    tune_gamma,
)
from fl_lowrank.errors import SettingError, require_kind
from fl_lowrank.mixing import Mixing, metropolis
from fl_lowrank.model import ModelCodec

from .decentralised import Decentralised

#: Where eigenvalues are known to some digits, a larger one may be 1.
_LARGEST_RHO = 1.0 - 1e-12


class Consensus(Decentralised):
    """Local training, and mixing with the neighbours every so many rounds.

    ::

        strategy = Consensus(metropolis(topology.cycle(4)), periods=5)
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=100)

    and, in the ClientApp, ``mods=[ConsensusMod()]``. An edge mixes in a round if both
    its ends are due, so that the mean of the models is kept (own periods of unequal
    nodes, whose shares of the data should be as large as their power).

    Flower has no links between nodes. The server passes messages on and holds the copy
    that neighbours have of a node's model: it serves no average, but it can read the
    copies. ``room.edges`` counts bytes as if links were direct; Flower's own messages
    carry more, since what a node gains comes to it in float64.

    S. Tikhonkov, "Research and Application of Consensus Algorithms for Distributed
    Training of Neural Networks" (thesis, St Petersburg State University, 2021, in
    Russian): algorithms 1 and 2; there one end of an edge may mix without the other,
    which moves the mean. Compressed: `fl_lowrank.consensus.Choco`.

    Parameters
    ----------
    mixing : Mixing
        The graph and its weights.
    periods : int or sequence of int
        Rounds from one mixing to the next, of all nodes or of each.
    compressor : str, optional
        A compressor or rules, for differences to public copies; unbiased ones are
        shrunk. Left out, nodes send their models.
    gamma : float, optional
        Step of compressed consensus; found on random vectors before training if it is
        left out.
    train_periods, evaluate_every, exact, seed, node_timeout
        See `strategies.decentralised.Decentralised`.

    Raises
    ------
    SpecError, SettingError
        If a setting cannot be understood, or ``mixing.rho`` is not below 1; from
        ``start``, if it does not go with the model, or no gamma is stable.
    """

    def __init__(
        self,
        mixing: Mixing,
        periods: int | Sequence[int] = 1,
        compressor: str | None = None,
        gamma: float | None = None,
        *,
        train_periods: int | Sequence[int] = 1,
        evaluate_every: int = 0,
        exact: Sequence[str] = (),
        seed: int = 0,
        node_timeout: float = 600.0,
    ) -> None:
        require_kind("Consensus", mixing, Mixing, "metropolis(topology.cycle(4))")
        if not mixing.rho < _LARGEST_RHO:
            msg = (
                f"Consensus: with these weights rho is {mixing.rho:.6g} and must be "
                "below 1, or nodes never agree; take metropolis, best_constant or "
                "fastest weights"
            )
            raise SettingError(msg)
        super().__init__(
            mixing.topology,
            train_periods=train_periods,
            evaluate_every=evaluate_every,
            exact=exact,
            seed=seed,
            node_timeout=node_timeout,
        )
        self.mixing = mixing
        self.periods = periods_of(self.name, mixing.topology, periods)
        self.compressor = None if compressor is None else ModelCodec(compressor)
        self.gamma = gamma
        if gamma is not None and (compressor is None or not 0.0 < gamma <= 1.0):
            msg = (
                "Consensus: expected gamma in (0, 1] and a compressor, found gamma "
                f"{gamma} and compressor {compressor!r}; without gamma it is tuned"
            )
            raise SettingError(msg)
        #: What is used: found anew at each start if it is not given.
        self.tuned_gamma = gamma
        self._codec = super().codec()

    def summary(self) -> None:
        """Log who mixes, and how."""
        n, edges = self.topology.num_nodes, len(self.topology.edges)
        text = "\t├──> Consensus: %s nodes, %s edges, rho %.4f"
        log(INFO, text, n, edges, self.mixing.rho)
        text = "\t├──> Messages: %s, gamma %s"
        gamma = 1.0 if self.compressor is None else self.tuned_gamma
        log(INFO, text, self._codec, gamma)

    def flows(self, rows: Rows) -> Flows:
        """Choose exact or compressed consensus."""
        # Weights that are never negative keep variances positive.
        statistics = metropolis(self.topology)
        if self.compressor is None:
            return Averaging(self.mixing, statistics)
        codec = contractive(self.compressor, rows.parameters)
        self._codec = str(codec)
        gamma = self.gamma
        if gamma is None:
            source = self.draws.child("tuning")
            gamma = tune_gamma(self.mixing, codec, rows.parameters, source).gamma
        self.tuned_gamma = gamma
        return Tracking(self.mixing, statistics, gamma)

    def codec(self) -> str:
        """See `Decentralised`."""
        return self._codec

    def edges_at(self, step: int) -> Tensor:
        """Give the edges with both ends due."""
        return due(self.topology, step, self.periods).nonzero().reshape(-1)

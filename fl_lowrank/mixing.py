"""How much of a neighbour's vector is taken: weights of the edges, and their speed.

One mixing step is ``x_i <- x_i + sum_j w_ij (x_j - x_i)``, the matrix ``W = I - L(w)``,
symmetric with rows that sum to 1: the mean is kept. ``rho``, the spectral norm of
``W - J`` with J the mean, is the factor by which the distance to the mean shrinks.
Weights may be negative.

References
----------
L. Xiao, S. Boyd, "Fast Linear Iterations for Distributed Averaging", Systems & Control
Letters 53, 2004: best constant weight (section 4.1), fastest weights as a semidefinite
program (section 3).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError, require_kind
from .exchange import Edges, exchange, flow
from .topology import Topology


@dataclass(frozen=True, eq=False)
class Mixing:
    """A topology with weights on its edges.

    Attributes
    ----------
    topology : Topology
        The graph.
    weights : Tensor
        Of its edges, shape (edges,), float64.

    Raises
    ------
    SettingError
        If there is not one finite weight for each edge.
    """

    topology: Topology
    weights: Tensor

    def __post_init__(self) -> None:
        _check(self.topology)
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        edges = len(self.topology.edges)
        if weights.shape != (edges,) or not bool(weights.isfinite().all()):
            msg = (
                f"mixing: expected {edges} finite weights, one for each edge in the "
                f"order of the topology's edges, found {weights.numel()} of shape "
                f"{tuple(weights.shape)}: {weights.reshape(-1)[:8].tolist()}"
            )
            raise SettingError(msg)
        object.__setattr__(self, "weights", weights)

    @cached_property
    def matrix(self) -> Tensor:
        """``W = I - L(w)``, shape (n, n), float64."""
        n = self.topology.num_nodes
        return torch.eye(n, dtype=torch.float64) - self.topology.laplacian(self.weights)

    @cached_property
    def rho(self) -> float:
        """Factor of one step on the distance to the mean; below 1 if it converges."""
        n = self.topology.num_nodes
        mean = torch.full((n, n), 1.0 / n, dtype=torch.float64)
        return float(torch.linalg.eigvalsh(self.matrix - mean).abs().max())

    @property
    def spectral_gap(self) -> float:
        """``1 - rho``."""
        return 1.0 - self.rho

    def step(self, x: Tensor, active: Tensor | None = None) -> Tensor:
        """Mix once along the edges, so that the mean is kept.

        Parameters
        ----------
        x : Tensor
            Shape (n, d), any floating-point dtype and device.
        active : Tensor, optional
            Booleans, shape (edges,): the edges that mix; all if left out.

        Returns
        -------
        Tensor
            Like x. One end of an edge loses what the other end has gained after
            rounding, so that the mean stays even where all vertices agree and would
            round alike: rounding changes the sum only where the ends' exponents differ.
        """
        return exchange(x, self._classes(x, active, 1.0, x.dtype), x)

    def flow(
        self, public: Tensor, active: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        """Give what each vertex gains: its row of ``rate (W - I) public``.

        Parameters
        ----------
        public : Tensor
            What the vertices know of each other, shape (n, d).
        active : Tensor, optional
            See `step`.
        rate : float
            Of the weights, gamma of CHOCO.

        Returns
        -------
        Tensor
            float64, shape (n, d), on the device of the copies. The sum of all rows is
            0, up to the rounding of float64.
        """
        return flow(public, self._classes(public, active, rate, torch.float64))

    def _classes(
        self, x: Tensor, active: Tensor | None, rate: float, dtype: torch.dtype
    ) -> list[Edges]:
        first, second = self.topology.ends()
        found = []
        for edges in self.topology.matchings:
            kept = edges if active is None else edges[active.cpu()[edges]]
            if len(kept):
                weights = (rate * self.weights[kept])[:, None].to(x.device, dtype)
                ends = first[kept].to(x.device), second[kept].to(x.device)
                found.append(Edges(*ends, weights))
        return found


def max_degree(topology: Topology) -> Mixing:
    """Give all edges ``1 / (largest degree + 1)``."""
    _check(topology)
    largest = int(topology.degrees().max())
    return _constant(topology, 1.0 / (largest + 1))


def metropolis(topology: Topology) -> Mixing:
    """Give an edge ``1 / (1 + larger degree of its ends)``: known from neighbours."""
    _check(topology)
    degrees = topology.degrees()
    first, second = topology.ends()
    larger = torch.maximum(degrees[first], degrees[second])
    return Mixing(topology, 1.0 / (1.0 + larger.to(torch.float64)))


def best_constant(topology: Topology) -> Mixing:
    """Give all edges the one weight of smallest rho, ``2 / (l_max + l_2)``."""
    _check(topology)
    if topology.num_nodes == 1:
        return _constant(topology, 0.0)
    eigenvalues = torch.linalg.eigvalsh(topology.laplacian())
    return _constant(topology, 2.0 / float(eigenvalues[-1] + eigenvalues[1]))


def fastest(topology: Topology) -> Mixing:
    """Give the weights of smallest rho among all, by a semidefinite program.

    Needs cvxpy, ``pip install '.[fdla]'`` in a clone. Some weights may be negative. On
    graphs whose edges all look alike the best constant is already the fastest.

    Raises
    ------
    SettingError
        If cvxpy is not installed, or its solver finds no solution.
    """
    _check(topology)
    n, edges = topology.num_nodes, topology.edges
    if not edges:
        return _constant(topology, 0.0)
    try:
        # Only half of it is typed, which mypy takes for all.
        cvxpy: Any = importlib.import_module("cvxpy")
    except ImportError:
        msg = (
            "mixing: the fastest weights need cvxpy; install it (the extra fdla of "
            "fl-lowrank), or use best_constant or metropolis weights"
        )
        raise SettingError(msg) from None
    incidence = torch.zeros(n, len(edges), dtype=torch.float64)
    columns = torch.arange(len(edges))
    first, second = topology.ends()
    incidence[first, columns], incidence[second, columns] = 1.0, -1.0
    b = incidence.numpy()
    weights: Any = cvxpy.Variable(len(edges))
    distance = torch.eye(n, dtype=torch.float64) - 1.0 / n
    deviation = distance.numpy() - b @ cvxpy.diag(weights) @ b.T
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sigma_max(deviation)))
    try:
        problem.solve()
    except cvxpy.SolverError as error:
        msg = f"mixing: the solver failed, {error}; use best_constant weights"
        raise SettingError(msg) from None
    if weights.value is None:
        msg = f"mixing: the solver ended with status {problem.status!r}"
        raise SettingError(msg)
    return Mixing(topology, torch.from_numpy(weights.value.copy()))


def _check(topology: object) -> None:
    require_kind("mixing", topology, Topology, "cycle(4) or from_networkx(graph)")


def _constant(topology: Topology, weight: float) -> Mixing:
    return Mixing(topology, torch.full((len(topology.edges),), weight).double())


#: Rules by name.
RULES = {
    "max_degree": max_degree,
    "metropolis": metropolis,
    "best_constant": best_constant,
    "fastest": fastest,
}

"""Weights of the edges: their speed, and that the mean is kept."""

from __future__ import annotations

import math
import sys
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

from fl_lowrank import topology
from fl_lowrank.errors import SettingError
from fl_lowrank.mixing import (
    Mixing,
    best_constant,
    fastest,
    max_degree,
    metropolis,
)
from fl_lowrank.topology import Topology

#: rho by maximal degree, Metropolis, best constant and fastest weights.
SPEEDS = {
    "cycle 4": (topology.cycle(4), 0.3333, 0.3333, 0.3333, 0.3333),
    "cycle 50": (topology.cycle(50), 0.9947, 0.9947, 0.9921, 0.9921),
    "cycle 50 + 7": (topology.cycle(50, [7]), 0.852, 0.852, 0.831, 0.8305),
    "cycle 50 + 7, 15": (topology.cycle(50, [7, 15]), 0.840, 0.840, 0.829, 0.7457),
    "torus 6 x 6": (topology.torus(6, 6), 0.8, 0.8, 0.7778, 0.7778),
    "Margulis 25": (topology.margulis(5), 0.7778, 0.714, 0.6667, 0.5094),
    "chordal cycle 23": (topology.chordal_cycle(23), 0.909, 0.908, 0.878, 0.8549),
    "4-regular 25": (topology.random_regular(25, 4, 1), 0.804, 0.804, 0.760, 0.6898),
    "complete 36": (topology.complete(36), 0.0, 0.0, 0.0, 0.0),
    "G(12, 26)": (topology.random_edges(12, 26, 22), 0.893, 0.879, 0.820, 0.7151),
    "G(50, 100)": (topology.random_edges(50, 100, 2), 0.968, 0.943, 0.945, 0.8934),
    "G(50, 150)": (topology.random_edges(50, 150, 0), 0.878, 0.832, 0.813, 0.6893),
    "G(50, 250)": (topology.random_edges(50, 250, 0), 0.817, 0.746, 0.725, 0.4978),
    "barbell": (
        topology.from_networkx(nx.barbell_graph(6, 0)),
        *(0.963, 0.963, 0.935, 0.9129),
    ),
}
#: Programs of some seconds.
LARGE = ("cycle 50", "cycle 50 + 7", "cycle 50 + 7, 15", "complete 36", "G(50, 100)",
         "G(50, 150)", "G(50, 250)")  # fmt: skip
SOME = [n for n in SPEEDS if n not in LARGE]
WITH_NEGATIVE_WEIGHTS = ("G(12, 26)", "G(50, 100)", "G(50, 150)", "G(50, 250)")


@pytest.mark.parametrize("name", SPEEDS)
def test_speed_of_simple_weights(name: str) -> None:
    graph, *expected, _ = SPEEDS[name]
    for rule, rho in zip(
        (max_degree, metropolis, best_constant), expected, strict=True
    ):
        assert rule(graph).rho == pytest.approx(rho, abs=6e-4), rule.__name__


@pytest.mark.parametrize(
    "name",
    [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)],
)
def test_speed_of_the_fastest_weights(name: str) -> None:
    graph, *_, best = SPEEDS[name]
    mixing = fastest(graph)
    assert mixing.rho == pytest.approx(best, abs=2e-4)
    assert mixing.rho <= best_constant(graph).rho + 1e-6
    assert bool((mixing.weights < -1e-3).any()) == (name in WITH_NEGATIVE_WEIGHTS)


def test_negative_weights_converge() -> None:
    mixing = fastest(topology.random_edges(12, 26, seed=22))
    assert float(mixing.weights.min()) < -0.1
    x = torch.linspace(-3.0, 5.0, 12, dtype=torch.float64)[:, None]
    distances = []
    for _ in range(80):
        distances.append(float((x - 1.0).norm()))
        x = mixing.step(x)
    assert distances[-1] <= 1.01 * mixing.rho**79 * distances[0]
    assert distances[-1] < 1e-10


@pytest.mark.parametrize("name", ["torus 6 x 6", "G(50, 150)", "barbell"])
def test_matrix_is_symmetric_keeps_the_mean_and_is_zero_off_the_edges(
    name: str,
) -> None:
    graph = SPEEDS[name][0]
    for mixing in (max_degree(graph), metropolis(graph), best_constant(graph)):
        matrix = mixing.matrix
        assert torch.equal(matrix, matrix.mT)
        torch.testing.assert_close(matrix.sum(0), torch.ones(len(matrix)).double())
        first, second = graph.ends()
        off = matrix.clone().fill_diagonal_(0.0)
        off[first, second] = off[second, first] = 0.0
        assert not bool(off.any())
        x = torch.arange(3.0 * graph.num_nodes, dtype=torch.float64).reshape(-1, 3)
        torch.testing.assert_close(mixing.step(x), matrix @ x)
        assert mixing.spectral_gap == 1.0 - mixing.rho


def test_rho_bounds_every_step() -> None:
    graph = topology.small_world(30, 4, 0.2, seed=0)
    mixing = metropolis(graph)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(30, 5, generator=generator, dtype=torch.float64)
        x -= x.mean(0)
        assert float(mixing.step(x).norm()) <= (mixing.rho + 1e-12) * float(x.norm())


def test_one_over_the_degree_does_not_converge_on_a_cycle() -> None:
    """Why max_degree adds one: the cycle of 4 is bipartite."""
    graph = topology.cycle(4)
    assert Mixing(graph, torch.full((4,), 0.5).double()).rho == pytest.approx(1.0)


@pytest.mark.parametrize(
    "num_steps",
    [1000, pytest.param(10_000, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_is_kept_over_many_steps(dtype: torch.dtype, num_steps: int) -> None:
    mixing = metropolis(topology.torus(6, 6))
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(36, 50, generator=generator, dtype=torch.float64) + 1.0).to(dtype)
    mean = x.double().mean(0)
    for _ in range(num_steps):
        x = mixing.step(x)
    drift = float((x.double().mean(0) - mean).norm() / mean.norm())
    assert drift < (1e-6 if dtype == torch.float32 else 1e-14)


def test_edges_that_are_not_active_do_nothing() -> None:
    mixing = metropolis(topology.cycle(5))
    x = torch.arange(5.0, dtype=torch.float64)[:, None]
    active = torch.tensor([True, False, False, False, False])  # the edge (0, 1)
    after = mixing.step(x, active)
    assert after.reshape(-1).tolist() == pytest.approx([1 / 3, 2 / 3, 2, 3, 4])
    none = torch.zeros(5, dtype=torch.bool)
    assert torch.equal(mixing.step(x, none), x)


def test_one_vertex_mixes_with_nobody() -> None:
    alone = Topology(1, ())
    x = torch.ones(1, 4)
    for rule in (max_degree, metropolis, best_constant, fastest):
        mixing = rule(alone)
        assert mixing.rho == pytest.approx(0.0)
        assert torch.equal(mixing.step(x), x)


def test_without_cvxpy_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(SettingError, match=r"the extra fdla of fl-lowrank"):
        fastest(topology.cycle(4))


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([0.3] * 3, r"3 of shape \(3,\)"),
        ([[0.3] * 4], r"4 of shape \(1, 4\)"),
        ([0.3, math.nan, 0.3, 0.3], "nan"),
        ([0.3, math.inf, 0.3, 0.3], "inf"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: list[Any], found: str) -> None:
    with pytest.raises(SettingError, match=f"expected 4 finite weights.*{found}"):
        Mixing(topology.cycle(4), weights)


def test_weights_may_be_a_list_and_of_any_precision() -> None:
    for weights in ([0.25] * 4, torch.full((4,), 0.25), np.full(4, 0.25)):
        mixing = Mixing(topology.cycle(4), weights)
        assert mixing.weights.dtype == torch.float64
        assert mixing.rho == pytest.approx(0.5)
    with pytest.raises(SettingError, match=r"from_networkx\(graph\), found a Graph"):
        Mixing(nx.cycle_graph(4), [0.25] * 4)

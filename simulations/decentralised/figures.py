"""Figures of decentralised runs: curves, and the graph with its spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_lowrank.mixing import Mixing
from fl_lowrank.topology import Topology

from ..figures import distinct_colors
from .report import Result

#: Shorter curves have a marker at each evaluation.
_NUM_MARKED = 5
#: Larger graphs stay on a circle: placing vertices takes the square of their number.
_NUM_PLACED = 100


def write_curves(path: Path, results: Sequence[Result]) -> None:
    """Draw accuracy and consensus distance over epochs.

    Parameters
    ----------
    path : Path
        The picture's file.
    results : Sequence[Result]
        One curve each: the mean over the agents, in a band of one standard deviation
        to both sides; dashed, the mean of their models.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, distance = figure.subplots(1, 2)
    for result, color in zip(results, distinct_colors(len(results)), strict=True):
        epochs = [entry["round"] for entry in result.rounds]
        means = [entry["accuracy"] for entry in result.rounds]
        spread = [entry["accuracy_deviation"] for entry in result.rounds]
        # A line of one point would not be seen.
        marker = "o" if len(epochs) < _NUM_MARKED else ""
        style = {"marker": marker, "color": color}
        accuracy.plot(epochs, means, label=result.name, **style)
        accuracy.fill_between(
            epochs,
            [m - s for m, s in zip(means, spread, strict=True)],
            [m + s for m, s in zip(means, spread, strict=True)],
            color=color,
            alpha=0.2,
        )
        middle = [entry["accuracy_of_mean"] for entry in result.rounds]
        accuracy.plot(epochs, middle, "--", color=color, linewidth=0.8)
        distances = [entry["consensus_distance"] for entry in result.rounds]
        if any(distances):
            distance.semilogy(epochs, distances, **style)
    accuracy.plot([], [], "--", color="gray", linewidth=0.8, label="mean of the models")
    accuracy.set(xlabel="epoch", ylabel="test accuracy")
    distance.set(xlabel="epoch", ylabel="distance to consensus / norm of the mean")
    figure.legend(loc="outside right upper", fontsize="small")
    for axes in (accuracy, distance):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def write_graph(path: Path, name: str, graph: dict[str, Any]) -> None:
    """Draw a topology beside the eigenvalues of its mixing matrix.

    Parameters
    ----------
    path : Path
        The picture's file.
    name : str
        For the title.
    graph : dict[str, Any]
        With num_agents, edges and weights, as runs write it.
    """
    edges = tuple((int(i), int(j)) for i, j in graph["edges"])
    weights = torch.tensor(graph["weights"], dtype=torch.float64)
    mixing = Mixing(Topology(int(graph["num_agents"]), edges), weights)
    n = mixing.topology.num_nodes
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    drawing, spectrum = figure.subplots(1, 2)
    at = _positions(mixing.topology)
    largest = float(weights.abs().max())
    for (i, j), weight in zip(edges, weights.tolist(), strict=True):
        drawing.plot(
            [at[i][0], at[j][0]],
            [at[i][1], at[j][1]],
            color="tab:red" if weight < 0 else "tab:blue",
            linewidth=0.3 + 1.7 * abs(weight) / largest,
            zorder=1,
        )
    drawing.scatter(*zip(*at, strict=True), s=1500 / (n + 5), color="black", zorder=2)
    drawing.set(aspect="equal", title=f"{name}: {n} agents, {len(edges)} edges")
    drawing.axis("off")
    values = torch.linalg.eigvalsh(mixing.matrix).flip(0).tolist()
    spectrum.plot(range(1, n + 1), values, "o")
    for bound in (mixing.rho, -mixing.rho):
        spectrum.axhline(bound, color="gray", linestyle=":")
    connectivity = mixing.topology.algebraic_connectivity()
    spectrum.xaxis.set_major_locator(MaxNLocator(integer=True))
    spectrum.set(
        xlabel="number",
        ylabel="eigenvalue of the mixing matrix",
        ylim=(-1.05, 1.05),
        title=f"rho {mixing.rho:.4f}, algebraic connectivity {connectivity:.4f}",
    )
    spectrum.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _positions(topology: Topology) -> list[tuple[float, float]]:
    """Place the vertices on a circle, and from there as far apart as their paths."""
    graph = nx.Graph()
    graph.add_nodes_from(range(topology.num_nodes))  # the order on the circle
    graph.add_edges_from(topology.edges)
    at = nx.circular_layout(graph)
    if topology.num_nodes <= _NUM_PLACED:
        at = nx.kamada_kawai_layout(graph, pos=at)
    return [(float(at[i][0]), float(at[i][1])) for i in range(topology.num_nodes)]

"""The table of an experiment, from its result files only.

``python -m simulations.decentralised.report runs/NAME`` writes it anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..errors import SimulationError
from ..results import Round, RunFolder


@dataclass(frozen=True)
class Result:
    """One run's files: name of its setting, its graph, its evaluations."""

    name: str
    graph: dict[str, Any]
    rounds: Sequence[Round]

    @property
    def last(self) -> Round:
        """The last evaluation."""
        return self.rounds[-1]


def read_results(root: Path) -> list[Result]:
    """Read all runs below a folder, in the order in which they were begun.

    Parameters
    ----------
    root : Path
        An experiment's folder.

    Returns
    -------
    list[Result]
        Those that were evaluated.
    """
    paths = sorted(root.rglob("config.json"), key=lambda path: path.stat().st_mtime_ns)
    found = []
    for path in paths:
        folder = RunFolder(path.parent)
        rounds, graph = folder.read_rounds(), folder.read("partition.json")
        if rounds and graph:
            name = str(path.parent.relative_to(root).parent)
            found.append(Result(name, graph, rounds))
    return found


def write_report(root: Path, console: Console) -> None:
    """Print the table of an experiment and draw its figures.

    Parameters
    ----------
    root : Path
        The experiment's folder.
    console : Console
        Where the table goes.
    """
    from .figures import write_curves, write_graph

    results = read_results(root)
    if not results:
        raise SimulationError(f"{root} holds no run that was evaluated.")
    console.print(_table(results))
    write_curves(root / "curves.png", results)
    graphs = {
        (str(result.graph["edges"]), str(result.graph["weights"])): result
        for result in reversed(results)
        if result.graph["edges"]
    }
    for result in graphs.values():
        write_graph(root / f"graph-{result.name}.png", result.name, result.graph)


def _table(results: Sequence[Result]) -> Table:
    table = Table(
        padding=0,
        caption="accuracy in %: mean over the agents ± deviation, and of the mean of "
        "their models; distance: of the agents to their mean, over its norm; MB over "
        "an edge, both ways; ratio: uncompressed size / size of the same messages",
    )
    table.add_column("setting", overflow="fold")
    for column in ("accuracy", "of mean", "distance", "MB/edge", "ratio", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        last = result.last
        ratio = last["bytes_uncompressed"] / max(last["bytes"], 1)
        table.add_row(
            result.name,
            f"{100 * last['accuracy']:.2f}±{100 * last['accuracy_deviation']:.2f}",
            f"{100 * last['accuracy_of_mean']:.2f}",
            f"{last['consensus_distance']:.1e}",
            f"{last['bytes_per_edge'] / 1e6:.2f}",
            f"{ratio:.1f}" if last["bytes"] else "-",
            f"{last['seconds']:.0f}",
        )
    return table


def main() -> int:
    """Report on the folder that the command line names.

    Returns
    -------
    int
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m simulations.decentralised.report")
    parser.add_argument("root", type=Path, help="an experiment's folder")
    found = parser.parse_args()
    try:
        write_report(found.root, Console())
    except SimulationError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

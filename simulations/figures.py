"""Figures of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .summary import Summary


def write_figure(path: Path, summaries: Sequence[Summary]) -> None:
    """Draw accuracy against rounds and against megabytes sent up.

    Parameters
    ----------
    path : Path
        The picture's file.
    summaries : Sequence[Summary]
        One curve each.
    """
    # Slow to import, and needed only at the end of a run.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_round, by_bytes = figure.subplots(1, 2, sharey=True)
    for summary in summaries:
        by_round.plot(summary.evaluated_rounds, summary.accuracy, label=summary.name)
        by_bytes.plot(
            summary.megabytes_sent_up[1:], summary.accuracy[1:], label=summary.name
        )
    by_round.set(xlabel="round", ylabel="test accuracy")
    by_bytes.set(xlabel="megabytes sent up, all clients", xscale="log")
    by_round.legend()
    for axes in (by_round, by_bytes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)

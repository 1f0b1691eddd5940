"""Figures of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .summary import Summary


def distinct_colors(count: int) -> list[tuple[float, float, float, float]]:
    """Give a colour for each of so many curves; they repeat after twenty."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(i % palette.N) for i in range(count)]


def write_figure(path: Path, summaries: Sequence[Summary]) -> None:
    """Draw accuracy against rounds and against megabytes sent up and down.

    The axis begins where most evaluations lie above, so that curves which end close
    together can be told apart.

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

    figure = Figure(figsize=(15, 5), layout="constrained")
    FigureCanvasAgg(figure)
    by_round, by_up, by_down = figure.subplots(1, 3, sharey=True)
    for summary, color in zip(summaries, distinct_colors(len(summaries)), strict=True):
        accuracy, rounds = summary.accuracy, summary.evaluated_rounds
        by_round.plot(rounds, accuracy, color=color, label=summary.name)
        by_up.plot(summary.megabytes_sent_up[1:], accuracy[1:], color=color)
        by_down.plot(summary.megabytes_sent_down[1:], accuracy[1:], color=color)
    by_round.set(xlabel="round", ylabel="test accuracy")
    by_round.set_ylim(bottom=min(np.quantile(s.accuracy, 0.15) for s in summaries))
    by_up.set(xlabel="MB sent up, all clients", xscale="log")
    by_down.set(xlabel="MB sent down for training, all clients", xscale="log")
    figure.legend(loc="outside right upper", fontsize="small")
    for axes in (by_round, by_up, by_down):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)

"""Figures of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .summary import NUM_LAST, Summary

#: Curves of so many evaluations are smoothed, as the table's accuracy is.
_MANY_EVALUATIONS = 25


def distinct_colors(count: int) -> list[tuple[float, float, float, float]]:
    """Give a colour for each of so many curves; they repeat after twenty."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(i % palette.N) for i in range(count)]


def write_figure(path: Path, summaries: Sequence[Summary]) -> None:
    """Draw accuracy against rounds and against megabytes sent up and down.

    Curves of many evaluations are drawn as the mean of the last five, over a pale trace
    of each. The axis begins where most evaluations lie above, so that curves which end
    close together can be told apart.

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
        accuracy, long = summary.accuracy, _is_long(summary)
        smooth = running_mean(accuracy, NUM_LAST) if long else accuracy
        # Nothing was sent before round 1, and the scale is logarithmic.
        for axes, x, first in (
            (by_round, summary.evaluated_rounds, 0),
            (by_up, summary.megabytes_sent_up, 1),
            (by_down, summary.megabytes_sent_down, 1),
        ):
            if long:
                axes.plot(x[first:], accuracy[first:], color=color, alpha=0.2)
            axes.plot(x[first:], smooth[first:], color=color, label=summary.name)
    means = f", mean of {NUM_LAST}" if any(map(_is_long, summaries)) else ""
    by_round.set(xlabel="round", ylabel=f"test accuracy{means}")
    by_round.set_ylim(bottom=min(np.quantile(s.accuracy, 0.15) for s in summaries))
    by_up.set(xlabel="MB sent up, all clients", xscale="log")
    by_down.set(xlabel="MB sent down for training, all clients", xscale="log")
    lines, names = by_round.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", fontsize="small")
    for axes in (by_round, by_up, by_down):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Give for each value the mean of it and those before, at most `window` of them.

    Parameters
    ----------
    values : NDArray
        One dimension.
    window : int
        How many.

    Returns
    -------
    NDArray
        As many values.
    """
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _is_long(summary: Summary) -> bool:
    return len(summary.evaluated_rounds) >= _MANY_EVALUATIONS

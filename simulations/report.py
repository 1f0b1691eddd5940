"""Tables and figures of an experiment, from its result files only.

``python -m simulations.report runs/NAME`` writes them anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .errors import SimulationError
from .figures import write_figure
from .summary import Summary, read_summaries

_LEVEL = 0.9
_NAME_WIDTH = 12


def write_report(root: Path, console: Console, level: float = _LEVEL) -> None:
    """Print the table of an experiment and write its figure.

    Parameters
    ----------
    root : Path
        The experiment's folder.
    console : Console
        Where the table goes.
    level : float
        Accuracy whose first round is reported.
    """
    summaries = read_summaries(root)
    if not summaries:
        raise SimulationError(f"{root} holds no run that was evaluated after a round.")
    console.print(_table(summaries, level))
    write_figure(root / "plot.png", summaries)


def _table(summaries: Sequence[Summary], level: float) -> Table:
    table = Table(
        padding=0,  # nine columns in eighty characters
        caption="accuracy: mean of the last 5 evaluations (± deviation over seeds); MB "
        "and codec seconds: all clients and rounds; x: float32 size / bytes sent",
    )
    for column in (
        "setting",
        "accuracy",
        f"{level:.0%} in",
        "up MB",
        "down MB",
        "eval MB",
        "up x",
        "down x",
        "codec s",
    ):
        table.add_column(
            column,
            justify="left" if column == "setting" else "right",
            overflow="fold",
            no_wrap=column != "setting",
            # In a narrow terminal the numbers must not squeeze the name out.
            min_width=_NAME_WIDTH if column == "setting" else None,
        )
    for summary in summaries:
        reached = summary.first_round_reaching(level)
        table.add_row(
            summary.name,
            _accuracy(summary),
            "never" if reached is None else f"{reached} r",
            _megabytes(summary.bytes_up),
            _megabytes(summary.bytes_down),
            _megabytes(summary.bytes_evaluate),
            f"{summary.uplink_ratio:.1f}",
            f"{summary.downlink_ratio:.1f}",
            f"{summary.codec_seconds:.1f}",
        )
    return table


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.{2 if size_bytes < 1e9 else 0}f}"


def _accuracy(summary: Summary) -> str:
    deviation = summary.last_accuracy_deviation
    spread = "" if deviation is None else f" ± {deviation:.3f}"
    return f"{summary.last_accuracy:.4f}{spread}"


def main() -> int:
    """Report on the folder that the command line names.

    Returns
    -------
    int
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m simulations.report")
    parser.add_argument("root", type=Path, help="an experiment's folder")
    parser.add_argument("--level", type=float, default=_LEVEL, help="(%(default)s)")
    found = parser.parse_args()
    try:
        write_report(found.root, Console(), found.level)
    except SimulationError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

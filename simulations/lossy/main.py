"""From the command line to the table, and what it must show."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..command import run_command
from ..errors import SimulationError
from .cases import FATES, SETTINGS, WAYS, Setting, run
from .descent import Descent

#: Memories that disagree stop above this norm, or the problem shows nothing.
FAR = 1e-3


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes
    ----------
    problem, fate, way : str
        Keys of `SETTINGS`, `FATES` and `WAYS`.
    step : float
        Of the descent.
    descent : Descent
        How it went.
    """

    problem: str
    fate: str
    way: str
    step: float
    descent: Descent

    @property
    def met(self) -> bool | None:
        """Whether it went as it should; None where nothing is asked.

        That is where a client saves too late, and where nothing that parts memories
        happens to those that commit at once.
        """
        match self.way:
            case "protocol":
                return self.descent.reached
            case "commit on send" if FATES[self.fate].parts:
                return self.descent.floor >= FAR
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Parameters
    ----------
    argv : Sequence[str] | None
        Arguments; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 only if every bar is met.
    """
    console = Console(width=None if sys.stdout.isatty() else 110)
    return run_command(lambda: _run(argv, console))


def show(rows: Sequence[Row], console: Console) -> None:
    """Print runs as a table."""
    table = Table(
        caption="EF21, TopK 10%, 20 clients, half of them asked in each round; "
        "floor: smallest norm of the mean gradient in the second half of the rounds"
    )
    for title in ("problem", "step", "fate", "memories"):
        table.add_column(title)
    for title in ("rounds to 1e-10", "floor", "bar"):
        table.add_column(title, justify="right")
    for row in rows:
        descent = row.descent
        table.add_row(
            row.problem,
            f"{row.step:.3g}",
            row.fate,
            row.way,
            str(descent.num_rounds) if descent.reached else "never",
            "" if descent.reached else f"{descent.floor:.1e}",
            {True: "ok", False: "MISSED", None: ""}[row.met],
        )
    console.print(table)


def _run(argv: Sequence[str] | None, console: Console) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.lossy",
        description="EF21 with lost messages, killed clients and lost memories.",
    )
    parser.add_argument(
        "--problem",
        action="append",
        choices=list(SETTINGS),
        help="run this one only (may be repeated); mushrooms needs the data",
    )
    names = parser.parse_args(argv).problem or list(SETTINGS)
    torch.set_num_threads(1)
    cases = list(_cases({name: SETTINGS[name]() for name in names}))
    rows = [
        Row(name, fate, way, setting.step, run(setting, fate, way))
        for name, setting, fate, way in track(
            cases, "running", console=console, transient=True
        )
    ]
    show(rows, console)
    if missed := sum(row.met is False for row in rows):
        raise SimulationError(f"{missed} of {len(rows)} runs missed their bar.")


def _cases(
    settings: dict[str, Setting],
) -> Iterator[tuple[str, Setting, str, str]]:
    """Leave out what cannot differ: saving late shows only where clients are killed."""
    for name, setting in settings.items():
        for fate in FATES:
            for way in WAYS:
                if way != "protocol, saved late" or "killed" in fate:
                    yield name, setting, fate, way

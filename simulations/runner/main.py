"""From the command line to the table: one experiment, watched and summed up."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..command import check_unused, run_command
from ..config import default_run_config
from ..data.dataset import DATA_VARIABLE
from ..experiments import Run
from ..report import write_report
from ..results import RunFolder
from ..resuming import Asked, incomplete
from .arguments import Arguments, read_arguments
from .flower import run_with_flower
from .in_process import run_side_by_side
from .progress import Display
from .superlink import LocalSuperLink


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Parameters
    ----------
    argv : Sequence[str] | None
        Arguments; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 only if every run completed.
    """
    return run_command(lambda: _run(read_arguments(argv), Console()))


def _run(arguments: Arguments, console: Console) -> None:
    root = arguments.out / arguments.name
    if not arguments.resume:
        check_unused(root)
    # The app runs in a folder of Flower's: paths mean the folder of the user's shell.
    if os.environ.get(DATA_VARIABLE):
        os.environ[DATA_VARIABLE] = str(Path(os.environ[DATA_VARIABLE]).resolve())
    runs = [_placed(run, root) for run in arguments.runs]
    left = _incomplete(runs) if arguments.resume else runs
    for run in left:
        Path(run.settings.out).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if left:
        ENGINES[arguments.engine](left, root, arguments, console)
    write_report(root, console)
    console.print(f"{time.monotonic() - start:.0f} s; results in {root}")


def _incomplete(runs: Sequence[Run]) -> list[Run]:
    asked = [
        (
            run,
            Asked(
                RunFolder(Path(run.settings.out)),
                run.settings.to_run_config(),
                default_run_config(),
                {"round": run.settings.num_rounds},
            ),
        )
        for run in runs
    ]
    return incomplete(asked)


def _with_flower(
    runs: Sequence[Run], root: Path, arguments: Arguments, console: Console
) -> None:
    console.print("Starting Flower's SuperLink and Ray, which takes some seconds.")
    with LocalSuperLink(root / "superlink.log") as link, Display(console) as display:
        for run in runs:
            run_with_flower(
                link,
                run,
                Path(run.settings.out),
                display.track(_title(run), run.settings.num_rounds),
                num_gpus_per_client=arguments.num_gpus_per_client,
            )


def _with_loopback(
    runs: Sequence[Run], root: Path, arguments: Arguments, console: Console
) -> None:
    with Display(console) as display:
        run_side_by_side(
            [
                (
                    run,
                    Path(run.settings.out),
                    display.track(_title(run), run.settings.num_rounds),
                )
                for run in runs
            ],
            min(arguments.num_jobs, len(runs)),
        )


ENGINES = {"flower": _with_flower, "loopback": _with_loopback}


def _placed(run: Run, root: Path) -> Run:
    settings = dataclasses.replace(run.settings, out=str(root / run.name))
    return dataclasses.replace(run, settings=settings)


def _title(run: Run) -> str:
    return run.name or run.settings.dataset

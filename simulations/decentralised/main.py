"""From the command line to the table: runs, one after the other or side by side."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from ..command import check_unused, run_command
from ..errors import SimulationError
from ..results import RunFolder
from ..resuming import Asked, incomplete
from .arguments import Arguments, read_arguments
from .driver import run_named
from .report import write_report
from .settings import Settings


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
    root = arguments.root
    runs = list(arguments.runs.values())
    if arguments.resume:
        runs = _incomplete(runs)
    else:
        check_unused(root)
    start = time.monotonic()
    failures = _run_all(runs, arguments.num_jobs)
    if len(failures) < len(runs) or not failures:
        write_report(root, console)
        console.print(f"{time.monotonic() - start:.0f} s; results in {root}")
    if failures:
        raise SimulationError("\n".join(failures))


def _run_all(runs: Sequence[Settings], num_jobs: int) -> list[str]:
    """Do all runs, and give what has failed: others are not lost by it."""
    failures = []
    with ExitStack() as stack:
        if num_jobs == 1 or len(runs) == 1:
            tasks: list[Callable[[], object]] = [partial(run_named, r) for r in runs]
        else:
            # Threads do not survive a fork, and torch has some.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(
                ProcessPoolExecutor(num_jobs, mp_context=context)
            )
            tasks = [pool.submit(run_named, settings).result for settings in runs]
        for task in tasks:
            try:
                task()
            except SimulationError as error:
                failures.append(str(error))
    return failures


def _incomplete(runs: Sequence[Settings]) -> list[Settings]:
    asked = [
        (
            run,
            Asked(
                RunFolder(Path(run.out)),
                run.to_run_config(),
                Settings().to_run_config(),
                {"round": run.epochs, "step": run.max_steps or math.inf},
            ),
        )
        for run in runs
    ]
    return incomplete(asked)

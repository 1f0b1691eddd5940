"""Runs over the loopback grid: the same apps without Ray, several side by side."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..errors import SimulationError
from ..experiments import Run
from ..results import RunFolder
from .failures import LOG_NAME, raise_written_error
from .progress import OnRound

_POLL_SECONDS = 0.2


def run_side_by_side(runs: Sequence[tuple[Run, Path, OnRound]], num_jobs: int) -> None:
    """Run trainings in processes of their own over the loopback grid.

    Parameters
    ----------
    runs : Sequence[tuple[Run, Path, OnRound]]
        What to run, in which folder, and whom to tell of each round.
    num_jobs : int
        How many at a time, on one core each.

    Raises
    ------
    SimulationError
        If one of them fails, with the reason in one sentence; the others are stopped.
    """
    # Threads do not survive a fork, and torch has some.
    context = multiprocessing.get_context("spawn")
    waiting = list(runs)
    working: list[tuple[BaseProcess, _Watched]] = []
    try:
        while waiting or working:
            while waiting and len(working) < num_jobs:
                run, folder, on_round = waiting.pop(0)
                process = context.Process(target=run_in_process, args=(run, folder))
                process.start()
                working.append((process, _Watched(folder, on_round)))
            time.sleep(_POLL_SECONDS)
            for worker, watched in list(working):
                ended = not worker.is_alive()
                watched.report()
                if ended:
                    watched.check(worker.exitcode)
                    working.remove((worker, watched))
    finally:
        for worker, _ in working:
            worker.kill()
            worker.join()


def run_in_process(run: Run, folder: Path) -> None:
    """Run one training over the loopback grid, output to its log.

    Parameters
    ----------
    run : Run
        What to run; its settings' `out` is `folder`.
    folder : Path
        Where the run writes its files.
    """
    with (folder / LOG_NAME).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # Flower and the library; the watching process does without.
    import torch

    from .. import client_app, server_app
    from ..loopback import LoopbackGrid

    torch.set_num_threads(1)  # clients' batches are small: cores serve other runs
    grid = LoopbackGrid(
        client_app.app, run.num_clients, run_config=run.settings.to_run_config()
    )
    server_app.run_federated(grid, run.settings)


class _Watched:
    """A run's folder, and how many of its rounds are told already."""

    def __init__(self, folder: Path, on_round: OnRound) -> None:
        self._folder = folder
        self._on_round = on_round
        self._num_told = 0

    def report(self) -> None:
        """Tell of new rounds."""
        rounds = RunFolder(self._folder).read_rounds()
        for entry in rounds[self._num_told :]:
            self._on_round(entry)
        self._num_told = len(rounds)

    def check(self, exit_code: int | None) -> None:
        """Raise if the run failed."""
        raise_written_error(self._folder)
        if exit_code != 0:
            raise SimulationError(
                f"a run's process ended with code {exit_code} without giving a "
                f"reason; see {self._folder / LOG_NAME}."
            )

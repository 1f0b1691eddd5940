"""One run in this process: the same apps over the loopback grid, without Ray."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from .. import client_app, server_app
from ..errors import SimulationError
from ..experiments import Run
from ..loopback import LoopbackGrid


def run_in_process(run: Run, folder: Path) -> None:
    """Run one training over the loopback grid.

    Parameters
    ----------
    run : Run
        What to run; its settings' `out` is `folder`.
    folder : Path
        Where the run writes its files.

    Raises
    ------
    SimulationError
        If the run did not complete, with the reason in one sentence.
    """
    grid = LoopbackGrid(
        client_app.app, run.num_clients, run_config=run.settings.to_run_config()
    )
    with _log_to(folder / "log.txt"):
        try:
            server_app.run_federated(grid, run.settings)
        except SimulationError:
            raise
        except Exception as error:
            raise SimulationError(
                f"the ServerApp failed: {type(error).__name__}: {error} See "
                f"{folder / 'log.txt'}."
            ) from error


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Let Flower's logger write to a file instead of the terminal."""
    logger = logging.getLogger("flwr")
    before = list(logger.handlers)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.handlers[:] = [handler]
    try:
        yield
    finally:
        logger.handlers[:] = before
        handler.close()

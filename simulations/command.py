"""What the commands have in common: how they end, and where their results go."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from .errors import SimulationError


def run_command(action: Callable[[], None]) -> int:
    """Do what a command is for, and end as a command should.

    Parameters
    ----------
    action : Callable[[], None]
        Everything, the reading of the arguments included.

    Returns
    -------
    int
        The exit code: 0 only if all was done; failures are told in one sentence.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        action()
    except SimulationError as error:
        # Not through a console, which would break the line.
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; everything that was started is stopped.", file=sys.stderr)
        return 130
    return 0


def check_unused(folder: Path) -> None:
    """Refuse to mix results.

    Parameters
    ----------
    folder : Path
        Where a command wants to write.

    Raises
    ------
    SimulationError
        If there is something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SimulationError(
            f"{folder} holds another run already: choose another --name, remove it, or "
            "go on with it by --resume."
        )


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception, so that everything which was started is stopped on the way out.
    raise SystemExit(128 + number)

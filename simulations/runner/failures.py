"""Why a run failed, in one sentence, from what it left in its folder."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import SimulationError
from ..results import RunFolder

LOG_NAME = "log.txt"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CLIENT_ERROR = re.compile(r"Received error in reply from node \d+: (.*)")


def raise_written_error(folder: Path) -> None:
    """Raise the error that the ServerApp wrote down, if it did.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Raises
    ------
    SimulationError
        The reason in one sentence, with the first client's error if there is one.
    """
    error = RunFolder(folder).read("error.json")
    if error is None:
        return
    log_path = folder / LOG_NAME
    message = " ".join(str(error["message"]).split()).rstrip(".")
    if error["type"] != SimulationError.__name__:
        message = f"{error['type']}: {message}"
    client = _CLIENT_ERROR.search(_read(log_path))
    said = client[1].strip().rstrip(".") if client else ""
    hint = f" (a client said: {said})" if said and said not in message else ""
    raise SimulationError(f"the ServerApp failed: {message}{hint}; see {log_path}.")


def last_line(log_path: Path) -> str:
    """Return the last line of a log that is not empty.

    Parameters
    ----------
    log_path : Path
        The log.

    Returns
    -------
    str
        The line, without colours.
    """
    lines = [line.strip() for line in _read(log_path).splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _read(log_path: Path) -> str:
    if not log_path.exists():
        return ""
    return _COLOUR.sub("", log_path.read_text("utf-8", errors="replace"))

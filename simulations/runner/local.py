"""Commands and ports of this machine."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path


def command(name: str) -> str:
    """Find a command of this environment, also if the environment is not active.

    Parameters
    ----------
    name : str
        Of the command.

    Returns
    -------
    str
        Its path.
    """
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def free_port() -> int:
    """Find a port that nobody listens on.

    Returns
    -------
    int
        The port, on this machine's loopback.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Say whether somebody listens on a port of this machine's loopback.

    Parameters
    ----------
    port : int
        The port.

    Returns
    -------
    bool
        Whether a connection was made.
    """
    with socket.socket() as client:
        client.settimeout(1.0)
        return client.connect_ex(("127.0.0.1", port)) == 0

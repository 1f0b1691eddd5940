"""Find and stop every process of a run, also those that Ray detaches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil

# Whatever a run starts inherits this variable, through sessions and process groups.
MARK = "FL_LOWRANK_RUN_MARK"
_GRACE_SECONDS = 5.0


def marked_processes(mark: str) -> list[psutil.Process]:
    """Find the living processes that carry a run's mark, and their descendants.

    Parameters
    ----------
    mark : str
        The value of the variable `MARK` in their environment.

    Returns
    -------
    list[psutil.Process]
        The processes, in no particular order.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        # Other users' processes cannot be read, and any may end meanwhile.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.add(process)
                # A process that retitles itself may overwrite its environment.
                found.update(process.children(recursive=True))
    return [process for process in found if _is_alive(process)]


def stop_marked_processes(mark: str) -> None:
    """Ask a run's processes to end, then end them.

    Parameters
    ----------
    mark : str
        The value of the variable `MARK` in their environment.
    """
    processes = marked_processes(mark)
    _signal_all(processes, "terminate")
    psutil.wait_procs(processes, timeout=_GRACE_SECONDS)
    # Look again: a process that was asked to end may have started another.
    for _ in range(3):
        processes = marked_processes(mark)
        if not processes:
            return
        _signal_all(processes, "kill")
        psutil.wait_procs(processes, timeout=_GRACE_SECONDS)


def has_process(mark: str, word: str) -> bool:
    """Say whether one of a run's processes has a word in its command line.

    Parameters
    ----------
    mark : str
        The value of the variable `MARK` in its environment.
    word : str
        Looked for in the arguments.

    Returns
    -------
    bool
        Whether there is one.
    """
    for process in marked_processes(mark):
        with contextlib.suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                return True
    return False


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _signal_all(processes: Iterable[psutil.Process], method: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            getattr(process, method)()

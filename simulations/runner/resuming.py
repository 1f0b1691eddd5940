"""Going on with an experiment: complete runs are kept, all others start anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import default_run_config
from ..errors import SimulationError
from ..experiments import Run
from ..results import RunFolder


def incomplete(runs: Sequence[Run]) -> list[Run]:
    """Find what is left to run, and remove what it had written before.

    Parameters
    ----------
    runs : Sequence[Run]
        With their folders.

    Returns
    -------
    list[Run]
        Those that have not written their last round.

    Raises
    ------
    SimulationError
        If a folder holds a run with other settings; nothing is removed then.
    """
    left = [run for run in runs if not _is_complete(run)]
    for run in left:
        RunFolder(Path(run.settings.out)).clear()
    return left


def _is_complete(run: Run) -> bool:
    folder = RunFolder(Path(run.settings.out))
    config = folder.read("config.json")
    if config is None:
        return False
    wanted = run.settings.to_run_config()
    # A key that is newer than the run had its default then.
    found = default_run_config() | config["run_config"]
    other = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
    if other:
        raise SimulationError(
            f"{folder.path} holds a run with another {', '.join(other)}: choose "
            "another --name, or give the same settings."
        )
    return len(folder.read_rounds()) == run.settings.num_rounds + 1

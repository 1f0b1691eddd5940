"""Going on with an experiment: complete runs are kept, all others start anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import SimulationError
from .results import Round, RunFolder

AnyRun = TypeVar("AnyRun")


@dataclass(frozen=True)
class Asked:
    """A run that is asked for, and how far it goes.

    Attributes
    ----------
    folder : RunFolder
        Where its results are, or will be.
    run_config, defaults : Mapping[str, Any]
        Its settings by name; those of a key that is newer than a run.
    last : Mapping[str, float]
        Entries of a round of which one is reached by the last one.
    """

    folder: RunFolder
    run_config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    last: Mapping[str, float]

    def is_complete(self) -> bool:
        """Tell whether the folder holds all of it.

        Returns
        -------
        bool
            False as well if there is nothing.

        Raises
        ------
        SimulationError
            If the folder holds a run with other settings.
        """
        config = self.folder.read("config.json")
        if config is None:
            return False
        found = {**self.defaults, **config["run_config"]}
        wanted = self.run_config
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if other:
            raise SimulationError(
                f"{self.folder.path} holds a run with another {', '.join(other)}: "
                "choose another --name, or give the same settings."
            )
        return any(map(self._is_last, self.folder.read_rounds()))

    def _is_last(self, entry: Round) -> bool:
        return any(entry[key] >= least for key, least in self.last.items())


def incomplete(runs: Sequence[tuple[AnyRun, Asked]]) -> list[AnyRun]:
    """Find what is left to run, and remove what it had written before.

    Parameters
    ----------
    runs : Sequence[tuple[AnyRun, Asked]]
        All runs of an experiment, and what is asked of each.

    Returns
    -------
    list[AnyRun]
        Those that have not written their last round.

    Raises
    ------
    SimulationError
        If a folder holds a run with other settings; nothing is removed then.
    """
    left = [(run, asked) for run, asked in runs if not asked.is_complete()]
    for _, asked in left:
        asked.folder.clear()
    return [run for run, _ in left]

"""What an experiment is: settings times seeds over one common task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Settings, default_run_config


@dataclass(frozen=True)
class Run:
    """One run of an experiment: a folder name, how many clients, the run config."""

    name: str
    num_clients: int
    settings: Settings


@dataclass(frozen=True)
class Experiment:
    """Every setting is run with every seed; all values are run config values.

    Attributes
    ----------
    num_clients : int
        Clients of the federation.
    common : Mapping[str, Any]
        What differs from the defaults of pyproject.toml, for all settings.
    settings : Mapping[str, Mapping[str, Any]]
        Name of each setting, and what it changes.
    seeds : tuple[int, ...]
        The seeds.
    """

    num_clients: int
    common: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    seeds: tuple[int, ...] = (0,)

    def runs(self, overrides: Mapping[str, Any], num_clients: int | None) -> list[Run]:
        """List the runs.

        Parameters
        ----------
        overrides : Mapping[str, Any]
            What the user sets, for all runs; a seed replaces the list of seeds.
        num_clients : int | None
            Clients, if not the experiment's.

        Returns
        -------
        list[Run]
            One per setting and seed; a single run has an empty name.
        """
        clients = self.num_clients if num_clients is None else num_clients
        found = list(self._configs(overrides))
        return [
            Run(
                f"{name or 'run'}/seed-{config['seed']}" if len(found) > 1 else "",
                clients,
                Settings.from_run_config(config),
            )
            for name, config in found
        ]

    def _configs(
        self, overrides: Mapping[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        seeds = (overrides["seed"],) if "seed" in overrides else self.seeds
        for name, changes in self.settings.items():
            for seed in seeds:
                config = default_run_config() | dict(self.common) | dict(changes)
                yield name, config | {"seed": seed} | dict(overrides)

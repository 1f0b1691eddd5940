"""The files of one run: the only thing that tables and figures are made from.

A run's folder holds config.json (run config and versions), partition.json, rounds.jsonl
(one line a round, round 0 before training), and after a failure error.json.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import fl_lowrank

_VERSIONS_OF = ("constriction", "flwr", "numpy", "torch")

_FILES = ("config.json", "partition.json", "rounds.jsonl", "error.json")

Round = dict[str, Any]


class Described(Protocol):
    """Settings that can be written down."""

    def to_run_config(self) -> dict[str, Any]:
        """Return them by name."""
        ...


@dataclass(frozen=True)
class RunFolder:
    """Writes and reads one run's folder; without a path it writes nothing."""

    path: Path | None

    @classmethod
    def named(cls, out: str) -> RunFolder:
        """Open, and if need be make, the folder of the run config's `out`.

        Parameters
        ----------
        out : str
            Absolute path, or empty for no files.

        Returns
        -------
        RunFolder
            The folder.
        """
        if not out:
            return cls(None)
        path = Path(out)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    def write_start(self, settings: Described, partition: dict[str, Any]) -> None:
        """Write what is known before the first round.

        Parameters
        ----------
        settings : Described
            The run's settings.
        partition : dict[str, Any]
            Statistics of the partition.
        """
        versions = {name: metadata.version(name) for name in _VERSIONS_OF}
        versions["fl-lowrank"] = fl_lowrank.__version__
        versions["python"] = platform.python_version()
        config = {"run_config": settings.to_run_config(), "versions": versions}
        self._write("config.json", config)
        self._write("partition.json", partition)

    def append_round(self, entry: Round) -> None:
        """Append one line to rounds.jsonl.

        Parameters
        ----------
        entry : Round
            The round's measurements.
        """
        if self.path is not None:
            with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def clear(self) -> None:
        """Remove what a run has written, so that it can start anew."""
        if self.path is not None:
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)

    def write_error(self, error: Exception) -> None:
        """Write why the run failed.

        Parameters
        ----------
        error : Exception
            What ended it.
        """
        self._write("error.json", {"type": type(error).__name__, "message": str(error)})

    def read(self, name: str) -> dict[str, Any] | None:
        """Read one of the json files.

        Parameters
        ----------
        name : str
            The file's name.

        Returns
        -------
        dict[str, Any] | None
            Its content; None if the run did not get so far.
        """
        if self.path is None or not (self.path / name).is_file():
            return None
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def read_rounds(self) -> list[Round]:
        """Read the lines of rounds.jsonl that are complete.

        Returns
        -------
        list[Round]
            Measurements in the order of rounds.
        """
        if self.path is None or not (self.path / "rounds.jsonl").is_file():
            return []
        lines = (
            (self.path / "rounds.jsonl").read_text("utf-8").splitlines(keepends=True)
        )
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self.path is not None:
            text = json.dumps(content, indent=2) + "\n"
            (self.path / name).write_text(text, encoding="utf-8")

"""What the runs of one setting come to, read from their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .results import Round, RunFolder

#: Evaluations that the reported accuracy is the mean of.
NUM_LAST = 5


@dataclass(frozen=True)
class Summary:
    """One setting: the rounds of each seed's run, round 0 first."""

    name: str
    runs: tuple[tuple[Round, ...], ...]

    @property
    def evaluated_rounds(self) -> NDArray[np.int64]:
        """Rounds after which every seed's model was evaluated, 0 (before) first."""
        by_seed = [
            {entry["round"] for entry in rounds if "accuracy" in entry}
            for rounds in self.runs
        ]
        return np.array(sorted(set.intersection(*by_seed)), dtype=np.int64)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Mean test accuracy over seeds, by evaluated round."""
        return self._accuracies().mean(axis=0)

    @property
    def last_accuracy(self) -> float:
        """Mean over seeds and the last 5 evaluations."""
        return float(self._last().mean())

    @property
    def last_accuracy_deviation(self) -> float | None:
        """Standard deviation over seeds of the last 5 evaluations' mean."""
        return float(self._last().std(ddof=1)) if len(self.runs) > 1 else None

    @property
    def bytes_up(self) -> float:
        """Bytes of updates, envelopes included, of a run."""
        return self._total("bytes_up")

    @property
    def bytes_down(self) -> float:
        """Bytes of models sent for training in a run."""
        return self._total("bytes_down")

    @property
    def bytes_evaluate(self) -> float:
        """Bytes of evaluate messages in a run, both ways."""
        return self._total("bytes_down_evaluate") + self._total("bytes_up_evaluate")

    @property
    def uplink_ratio(self) -> float:
        """Size of the updates as float32 over what was sent."""
        return self._total("bytes_up_dense") / max(self.bytes_up, 1.0)

    @property
    def downlink_ratio(self) -> float:
        """Size of all messages down as float32 over what was sent, evaluation included.

        0 for files from before this was counted.
        """
        sent = self._total("bytes_down") + self._total("bytes_down_evaluate")
        return self._total("bytes_down_dense") / max(sent, 1.0)

    @property
    def codec_seconds(self) -> float:
        """Seconds of encoding, all clients, and decoding in a run."""
        return self._total("encode_seconds") + self._total("decode_seconds")

    @property
    def megabytes_sent_up(self) -> NDArray[np.float64]:
        """Cumulated megabytes of updates, mean over seeds, by evaluated round."""
        return self._megabytes("bytes_up")

    @property
    def megabytes_sent_down(self) -> NDArray[np.float64]:
        """The same of models sent for training."""
        return self._megabytes("bytes_down")

    def first_round_reaching(self, level: float) -> int | None:
        """Find the first evaluated round whose mean accuracy reaches a level.

        Parameters
        ----------
        level : float
            The accuracy.

        Returns
        -------
        int | None
            The round; None if there is none.
        """
        reached = np.flatnonzero(self.accuracy >= level)
        return int(self.evaluated_rounds[reached[0]]) if len(reached) else None

    def _last(self) -> NDArray[np.float64]:
        return self._accuracies()[:, 1:][:, -NUM_LAST:].mean(axis=1)

    def _accuracies(self) -> NDArray[np.float64]:
        return np.array(
            [
                [rounds[i]["accuracy"] for i in self.evaluated_rounds]
                for rounds in self.runs
            ]
        )

    def _megabytes(self, key: str) -> NDArray[np.float64]:
        by_round = self._table(key).mean(axis=0).cumsum() / 1e6
        return by_round[self.evaluated_rounds]

    def _total(self, key: str) -> float:
        return float(self._table(key).sum(axis=1).mean())

    def _table(self, key: str) -> NDArray[np.float64]:
        # A run that was stopped early shortens its setting.
        num_rounds = min(len(rounds) for rounds in self.runs)
        return np.array(
            [
                [entry.get(key, 0) for entry in rounds[:num_rounds]]
                for rounds in self.runs
            ]
        )


def read_summaries(root: Path) -> Sequence[Summary]:
    """Read all runs below a folder, grouped by setting.

    Parameters
    ----------
    root : Path
        An experiment's folder.

    Returns
    -------
    Sequence[Summary]
        One summary for each setting that was evaluated after a round.
    """
    groups: dict[str, list[tuple[Round, ...]]] = {}
    for path in sorted(root.rglob("rounds.jsonl"), key=lambda path: path.parts):
        folder = RunFolder(path.parent)
        rounds = tuple(folder.read_rounds())
        if sum("accuracy" in entry for entry in rounds) > 1:
            groups.setdefault(_setting(root, folder), []).append(rounds)
    return [Summary(name, tuple(runs)) for name, runs in groups.items()]


def _setting(root: Path, folder: RunFolder) -> str:
    assert folder.path is not None
    if folder.path != root:
        return str(folder.path.relative_to(root).parent)
    config = folder.read("config.json") or {"run_config": {"uplink": root.name}}
    return str(config["run_config"]["uplink"])

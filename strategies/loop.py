"""The rounds of a training, which may begin where an earlier one ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

EvaluateFn: TypeAlias = Callable[[int, ArrayRecord], MetricRecord | None]
_TABLES = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    arrays : ArrayRecord
        The model.
    round : int
        The last round that has ended; 0 before the first.
    result : Result
        What will be given back.
    """

    arrays: ArrayRecord
    round: int = 0
    result: Result = field(default_factory=Result)

    def plain(self) -> dict[str, Any]:
        """Give what must survive a restart."""
        return {
            "arrays": self.arrays,
            "round": self.round,
            "aggregated": bool(self.result.arrays),
            "metrics": [
                list(map(list, getattr(self.result, table).items()))
                for table in _TABLES
            ],
        }

    @classmethod
    def resumed(cls, plain: dict[str, Any]) -> Progress:
        """Go on with what `plain` gave."""
        result = Result()
        for table, rows in zip(_TABLES, plain["metrics"], strict=True):
            getattr(result, table).update(rows)
        if plain["aggregated"]:
            result.arrays = plain["arrays"]
        return cls(plain["arrays"], plain["round"], result)


@dataclass(frozen=True)
class Plan:
    """What `Strategy.start` is asked to do."""

    grid: Grid
    num_rounds: int
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None


def run_rounds(
    strategy: Strategy, plan: Plan, progress: Progress, save: Callable[[], None]
) -> Result:
    """Train and evaluate round after round, as ``Strategy.start`` of Flower does.

    Parameters
    ----------
    strategy : Strategy
        Configures and aggregates.
    plan : Plan
        What to do, up to and including round ``num_rounds``.
    progress : Progress
        Moved forward.
    save : callable
        Called when a round's training has been aggregated, before any message that
        tells a client so, and at the end.
    """
    begin = time.monotonic()
    result = progress.result
    if progress.round == 0:
        _evaluate_centrally(plan, progress)
    for number in range(progress.round + 1, plan.num_rounds + 1):
        log(INFO, "")
        log(INFO, "[ROUND %s/%s]", number, plan.num_rounds)
        requests = strategy.configure_train(
            number, progress.arrays, plan.train_config, plan.grid
        )
        replies = plan.grid.send_and_receive(requests, timeout=plan.timeout)
        arrays, metrics = strategy.aggregate_train(number, replies)
        if arrays is not None:
            progress.arrays = result.arrays = arrays
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[number] = metrics
        progress.round = number
        save()
        requests = strategy.configure_evaluate(
            number, progress.arrays, plan.evaluate_config, plan.grid
        )
        replies = plan.grid.send_and_receive(requests, timeout=plan.timeout)
        metrics = strategy.aggregate_evaluate(number, replies)
        if metrics is not None:
            log(INFO, "\t└──> Aggregated MetricRecord: %s", metrics)
            result.evaluate_metrics_clientapp[number] = metrics
        _evaluate_centrally(plan, progress)
    save()
    log(INFO, "")
    log(INFO, "Training finished in %.2f s", time.monotonic() - begin)
    return result


def _evaluate_centrally(plan: Plan, progress: Progress) -> None:
    if plan.evaluate_fn is None:
        return
    metrics = plan.evaluate_fn(progress.round, progress.arrays)
    log(INFO, "Evaluation of round %s on the server: %s", progress.round, metrics)
    if metrics is not None:
        progress.result.evaluate_metrics_serverapp[progress.round] = metrics

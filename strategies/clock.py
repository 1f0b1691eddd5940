"""The rounds of a training without a central model: steps of a common clock."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Result, Strategy

from . import replies as reading
from .loop import Plan
from .survey import Survey


class Clocked(Strategy):
    """A strategy whose models are looked at after some rounds alone.

    Attributes
    ----------
    survey : Survey
        The last evaluation.
    """

    survey: Survey

    @abstractmethod
    def attempts_after(self, round_: int) -> int:
        """Say how often nodes are asked for their models after a round."""


def run_clock(strategy: Clocked, plan: Plan, initial: ArrayRecord) -> Result:
    """Train and evaluate round after round.

    Unlike in `loop.run_rounds` there is no model between the rounds; a round without a
    request takes no time.

    Parameters
    ----------
    strategy : Clocked
        Configures and aggregates.
    plan : Plan
        What to do.
    initial : ArrayRecord
        What all nodes start from.

    Returns
    -------
    Result
        Its arrays are the mean of the models that answered the last evaluation.
    """
    begin = time.monotonic()
    result = Result()

    def evaluate(round_: int, arrays: ArrayRecord) -> None:
        if plan.evaluate_fn is None:
            return
        metrics = plan.evaluate_fn(round_, arrays)
        if metrics is not None:
            result.evaluate_metrics_serverapp[round_] = metrics

    def exchange(
        configure: Callable[..., Iterable[Message]], round_: int, config: ConfigRecord
    ) -> list[Message] | None:
        requests = list(configure(round_, initial, config, plan.grid))
        if not requests:
            return None
        return list(plan.grid.send_and_receive(requests, timeout=plan.timeout))

    evaluate(0, initial)
    for round_ in range(1, plan.num_rounds + 1):
        replies = exchange(strategy.configure_train, round_, plan.train_config)
        if replies is not None:
            _, metrics = strategy.aggregate_train(round_, replies)
            _note(result.train_metrics_clientapp, round_, metrics)
        attempts = strategy.attempts_after(round_)
        for _ in range(attempts):
            config = plan.evaluate_config
            replies = exchange(strategy.configure_evaluate, round_, config)
            if replies is not None:
                found = strategy.aggregate_evaluate(round_, replies)
                _note(result.evaluate_metrics_clientapp, round_, found)
        if attempts and strategy.survey.models:
            result.arrays = reading.record_of(strategy.survey.mean(), initial)
            log(INFO, "Evaluated after round %s of %s", round_, plan.num_rounds)
            evaluate(round_, result.arrays)
    log(INFO, "Training finished in %.2f s", time.monotonic() - begin)
    return result


def _note(
    table: dict[int, MetricRecord], round_: int, metrics: MetricRecord | None
) -> None:
    if metrics is not None:
        table[round_] = metrics

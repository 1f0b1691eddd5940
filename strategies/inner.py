"""What is known about the strategies that `Compressed` wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)

from fl_lowrank.errors import SettingError
from fl_lowrank.feedback import Feedback

#: Aggregations that use the weighted mean of the replies and nothing else of them.
#: Compared by identity, since Krum, FedMedian and QFedAvg are subclasses of FedAvg.
LINEAR = tuple(
    cls.aggregate_train for cls in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)
)

MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


def is_linear(strategy: Strategy) -> bool:
    """Whether the strategy averages with one of `LINEAR`, unchanged."""
    return type(strategy).aggregate_train in LINEAR


def check(strategy: Strategy, feedback: Feedback, *, linear: bool) -> None:
    """Refuse pairs that cannot work.

    Raises
    ------
    SettingError
        If a strategy that looks at single replies is paired with a memory: with
        error feedback what was sent must enter the model, and the sum of EF21's
        memories does not tell what a single client would have sent.
    """
    if not linear and feedback.has_memory:
        name = type(strategy).__name__
        msg = (
            f"Compressed: {name} looks at single replies, which cannot be paired with "
            f'feedback="{feedback.name}"; use feedback="plain", or linear=True if it '
            "uses only their weighted mean"
        )
        raise SettingError(msg)


def weight_key(strategy: Strategy) -> str:
    """Name of the weight in the clients' metrics; looks through wrappers."""
    inner: object = strategy
    while not hasattr(inner, "weighted_by_key") and hasattr(inner, "strategy"):
        inner = inner.strategy
    return str(getattr(inner, "weighted_by_key", "num-examples"))


@contextmanager
def metrics_of(strategy: Strategy, messages: list[Message]) -> Iterator[None]:
    """Let the strategy's metrics function see these replies, whatever it is given."""
    original: MetricsFn | None = getattr(strategy, "train_metrics_aggr_fn", None)
    if original is None:
        yield
        return
    contents = [m.content for m in messages]
    function = original

    def on_originals(records: list[RecordDict], key: str) -> MetricRecord:
        del records
        return function(contents, key)

    vars(strategy)["train_metrics_aggr_fn"] = on_originals
    try:
        yield
    finally:
        vars(strategy)["train_metrics_aggr_fn"] = original

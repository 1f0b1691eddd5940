"""What is known about the strategies that `Compressed` wraps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)

from fl_lowrank.compressors import F16, Identity
from fl_lowrank.errors import SettingError
from fl_lowrank.feedback import Feedback
from fl_lowrank.model import ModelCodec
from fl_lowrank.types import Compressor

#: Aggregations that use the weighted mean of the replies and nothing else of them.
#: Compared by identity, since Krum, FedMedian and QFedAvg are subclasses of FedAvg.
LINEAR = tuple(
    cls.aggregate_train for cls in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)
)

#: Their noise hides one update of at most the norm that clients clip to.
CLIPPED_BY_CLIENTS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
)

#: They clip every reply to such a norm themselves.
CLIPPING = (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)

#: They skip a round in which a reply is an error, which one client could always send,
#: and some of them divide by the number of replies.
PRIVATE = (*CLIPPED_BY_CLIENTS, *CLIPPING)

MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


def is_linear(strategy: Strategy) -> bool:
    """Whether the strategy averages with one of `LINEAR`, unchanged."""
    return type(strategy).aggregate_train in LINEAR


def check(
    strategy: Strategy, feedback: Feedback, *, linear: bool, per_node: bool
) -> None:
    """Refuse pairs that cannot work.

    Raises
    ------
    SettingError
        If a strategy that looks at single replies is paired with a memory: with
        error feedback what was sent must enter the model, and the sum of EF21's
        memories does not tell what a single client would have sent. If one is said
        to be linear that clips single replies.
    """
    name = type(strategy).__name__
    if linear and has_layer(strategy, CLIPPING):
        msg = (
            f"Compressed: {name} clips single replies for differential privacy, which "
            "linear=True would keep from it; leave linear= out"
        )
        raise SettingError(msg)
    if linear or not feedback.has_memory or (feedback.has_share and per_node):
        return
    todo = 'memory="per-node"' if feedback.has_share else 'feedback="plain"'
    msg = (
        f"Compressed: {name} looks at single replies, which cannot be paired with "
        f'feedback="{feedback}"; use {todo}, or linear=True if it uses only their '
        "weighted mean"
    )
    raise SettingError(msg)


def check_clipping(strategy: Strategy, feedback: Feedback, codec: ModelCodec) -> None:
    """Refuse what would undo the clipping that clients do for privacy.

    Raises
    ------
    SettingError
        If what is sent can be longer than the clipped update: a memory adds older
        updates to it, and not every compressor keeps the norm.
    """
    if not has_layer(strategy, CLIPPED_BY_CLIENTS):
        return
    used = codec.compressors
    if isinstance(codec.rules, Compressor) and not isinstance(codec.rules, Identity):
        used = [*used, F16()]  # for small tensors
    longer = [str(c) for c in used if not c.norm_nonincreasing]
    if feedback.has_memory:
        longer.append(f'feedback="{feedback}"')
    if longer:
        msg = (
            f"Compressed: {type(strategy).__name__} relies on updates that clients "
            f"have clipped, and {', '.join(longer)} can make them longer; use "
            'feedback="plain" and rules of compressors that keep the norm, such as '
            '"*: topk(fraction=0.01)"'
        )
        raise SettingError(msg)


def weight_key(strategy: Strategy) -> str:
    """Name of the weight in the clients' metrics; looks through wrappers."""
    for layer in layers(strategy):
        if hasattr(layer, "weighted_by_key"):
            return str(layer.weighted_by_key)
    return "num-examples"


def scale_of(message: Message, key: str) -> float:
    """Read the local step from what a client is told; 1 if there is none."""
    for record in message.content.config_records.values():
        value = record.get(key)
        if isinstance(value, int | float) and 0.0 < value < float("inf"):
            return float(value)
    return 1.0


def has_layer(strategy: Strategy, kinds: tuple[type, ...]) -> bool:
    """Whether a strategy, or one that it wraps, is of these kinds."""
    return any(isinstance(layer, kinds) for layer in layers(strategy))


def layers(strategy: object) -> Iterator[object]:
    """Give a strategy and those that it wraps, from outside in."""
    while strategy is not None:
        yield strategy
        strategy = getattr(strategy, "strategy", None)


@contextmanager
def metrics_of(strategy: Strategy, messages: list[Message]) -> Iterator[None]:
    """Let the strategy's metrics function see these replies, whatever it is given."""
    name = "train_metrics_aggr_fn"
    owner = next((s for s in layers(strategy) if hasattr(s, name)), None)
    if owner is None:
        yield
        return
    contents = [m.content for m in messages]
    function: MetricsFn = getattr(owner, name)

    def on_originals(records: list[RecordDict], key: str) -> MetricRecord:
        del records
        return function(contents, key)

    vars(owner)[name] = on_originals
    try:
        yield
    finally:
        vars(owner)[name] = function

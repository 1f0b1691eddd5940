"""The server's strategy: one of Flower's, inside the wrapper that compresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from strategies import Compressed

from .config import Settings
from .errors import choose


@dataclass(frozen=True)
class Inner:
    """A strategy of Flower, its name for the server's step, its constants."""

    make: Callable[..., FedAvg]
    lr_name: str | None = None
    constants: Mapping[str, float] = field(default_factory=dict)


STRATEGIES = {
    "fedavg": Inner(FedAvg),
    "fedavgm": Inner(FedAvgM, "server_learning_rate", {"server_momentum": 0.9}),
    "fedadam": Inner(FedAdam, "eta", {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
}
NO_COMPRESSION = "none"


def build_strategy(settings: Settings) -> Compressed:
    """Build the strategy that a run config names.

    Parameters
    ----------
    settings : Settings
        The run's settings.

    Returns
    -------
    Compressed
        The wrapper; with uplink `none` it only counts bytes.
    """
    inner = choose(STRATEGIES, settings.strategy, "strategy")
    options: dict[str, Any] = dict(inner.constants)
    if inner.lr_name is not None:
        options[inner.lr_name] = settings.server_lr
    return Compressed(
        inner.make(
            fraction_train=settings.fraction_train,
            fraction_evaluate=settings.fraction_evaluate,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            **options,
        ),
        uplink=None if settings.uplink == NO_COMPRESSION else settings.uplink,
        feedback=settings.feedback,
        seed=settings.seed,
    )

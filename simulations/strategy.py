"""The server's strategy: one of Flower's, inside the wrapper that compresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from strategies import Compressed
from strategies.books import MemoryMode

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
MEMORIES: Mapping[str, MemoryMode] = {"sum": "sum", "per-node": "per-node"}
NO_COMPRESSION = "none"


class Annealed(Compressed):
    """Sends the clients' step of each round, in units of which errors are kept."""

    def __init__(self, inner: FedAvg, settings: Settings, **options: Any) -> None:
        super().__init__(inner, **options)
        self._settings = settings

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nodes to train with the round's step."""
        config["lr"] = self._settings.lr_in(server_round)
        return super().configure_train(server_round, arrays, config, grid)


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
    memory = choose(MEMORIES, settings.memory, "memory")
    options: dict[str, Any] = dict(inner.constants)
    if inner.lr_name is not None:
        options[inner.lr_name] = settings.server_lr
    return Annealed(
        inner.make(
            fraction_train=settings.fraction_train,
            fraction_evaluate=settings.fraction_evaluate,
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=1,
            **options,
        ),
        settings,
        uplink=None if settings.uplink == NO_COMPRESSION else settings.uplink,
        feedback=settings.feedback,
        memory=memory,
        downlink=settings.downlink,
        seed=settings.seed,
        checkpoint=settings.checkpoint or None,
        evict_after=settings.evict_after or None,
        max_norm=settings.max_norm or None,
    )

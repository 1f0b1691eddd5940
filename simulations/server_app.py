"""The ServerApp: the model, the strategy, central evaluation, the run's files."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result
from torch import nn

from strategies import Compressed

from .config import Settings
from .data import Dataset, Partitioning, load_dataset, partition_dataset
from .data import partition_statistics as statistics_of
from .decentralised.arguments import from_text
from .decentralised.server import run_decentralised
from .errors import SimulationError
from .models import build_model
from .results import RunFolder
from .strategy import build_strategy
from .training import evaluate

app = ServerApp()
logger = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federated training as the run config says.

    Parameters
    ----------
    grid : Grid
        The way to the clients.
    context : Context
        Holds the run config.
    """
    run_federated(grid, Settings.from_run_config(context.run_config))


def run_federated(grid: Grid, settings: Settings) -> Result:
    """Run one federated training over any grid, and write its files.

    Parameters
    ----------
    grid : Grid
        The way to the clients.
    settings : Settings
        The run's settings.

    Returns
    -------
    Result
        Flower's record of the training.
    """
    folder = RunFolder.named(settings.out)
    try:
        if settings.decentralised:
            asked = from_text(settings.decentralised, settings.out)
            return run_decentralised(grid, asked, settings.timeout)
        return _run(grid, settings, folder)
    except Exception as error:
        folder.write_error(error)
        raise


def _run(grid: Grid, settings: Settings, folder: RunFolder) -> Result:
    random.seed(settings.seed)  # Flower's strategies sample nodes from this one
    strategy = build_strategy(settings)
    data = load_dataset(settings.dataset, settings.train_samples)
    model = build_model(
        settings.model, data.sample_shape, data.num_classes, settings.seed
    )
    folder.write_start(settings, _partition_statistics(grid, settings, data))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=settings.num_rounds,
        timeout=settings.timeout,
        evaluate_fn=_central_evaluation(model, data, strategy, folder, settings),
        resume=_written(strategy.checkpoint),
        evict=settings.evicted,
    )
    if not result.train_metrics_clientapp:
        raise SimulationError(
            f"no client returned a usable update in {settings.num_rounds} rounds."
        )
    return result


def _written(checkpoint: Path | None) -> Path | None:
    """Give the checkpoint of an earlier run, if there is one to go on from."""
    return checkpoint if checkpoint is not None and checkpoint.exists() else None


def _partition_statistics(
    grid: Grid, settings: Settings, data: Dataset
) -> dict[str, Any]:
    parts = partition_dataset(Partitioning.of(settings), len(list(grid.get_node_ids())))
    statistics = statistics_of(parts, data.train_y.numpy(), data.num_classes)
    logger.info(
        "Partition %s of %s: %d clients with %d to %d samples (median %.0f), labels "
        "of a client have %.2f of %.2f bits of entropy",
        settings.partition,
        settings.dataset,
        statistics["num_clients"],
        statistics["size_min"],
        statistics["size_max"],
        statistics["size_median"],
        statistics["label_entropy_bits_mean"],
        statistics["label_entropy_bits_all"],
    )
    return statistics


def _central_evaluation(
    model: nn.Module,
    data: Dataset,
    strategy: Compressed,
    folder: RunFolder,
    settings: Settings,
) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    test_x, test_y = data.test_x.to(device), data.test_y.to(device)
    last = time.perf_counter()

    def close_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        nonlocal last
        measured = MetricRecord()
        if settings.evaluates_after(server_round):
            model.load_state_dict(arrays.to_torch_state_dict())
            loss, accuracy = evaluate(model, test_x, test_y)
            measured = MetricRecord({"accuracy": accuracy, "loss": loss})
        now = time.perf_counter()
        folder.append_round(
            {**strategy.ledger.round(server_round), **measured, "seconds": now - last}
        )
        last = now
        return measured or None

    return close_round

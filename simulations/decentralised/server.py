"""The same training through Flower, over any grid: the server's part."""

from __future__ import annotations

import time
from logging import INFO

from flwr.app import ArrayRecord, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from strategies import Consensus, Gossip

from ..results import RunFolder
from .driver import Training, told
from .settings import Settings


def run_decentralised(grid: Grid, settings: Settings, timeout: float) -> Result:
    """Train as the settings say, every agent a node of the grid; write the run's files.

    Parameters
    ----------
    grid : Grid
        The way to the agents.
    settings : Settings
        The run's settings.
    timeout : float
        Seconds to wait for the replies of a round.

    Returns
    -------
    Result
        Flower's record; its rounds are steps.
    """
    folder = RunFolder.named(settings.out)
    training = Training(settings)
    folder.write_start(settings, training.describe())
    strategy = build_strategy(training)
    start = time.perf_counter()

    def close_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        agents = training.agents
        agents.model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = training.accuracy_of_mean(*agents.held())
        found = strategy.survey.metrics(strategy.room)
        entry = {
            "round": server_round / training.steps_per_epoch,
            "step": server_round,
            **found,
            "accuracy_of_mean": accuracy,
            "bytes_uncompressed": found["messages"] * training.setup.message_bytes,
            "seconds": time.perf_counter() - start,
        }
        folder.append_round(entry)
        log(INFO, "%s: %s", strategy.name, told(entry))
        return MetricRecord({"accuracy": accuracy})

    return strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(training.agents.model.state_dict()),
        num_rounds=training.total_steps,
        timeout=timeout,
        evaluate_fn=close_round,
    )


def build_strategy(training: Training) -> Consensus | Gossip:
    """Build the strategy that does what a training in one process does.

    Parameters
    ----------
    training : Training
        That one.

    Returns
    -------
    Consensus | Gossip
        The strategy.
    """
    settings, setup = training.settings, training.setup
    evaluate_every = settings.evaluate_every * training.steps_per_epoch
    if settings.method == "gossip":
        return Gossip(
            setup.topology,
            settings.gossip_edges,
            matching=settings.gossip_draw == "matching",
            period=settings.mix_every,
            train_periods=training.periods,
            evaluate_every=evaluate_every,
            seed=settings.seed,
        )
    exact = settings.compressor == "none"
    return Consensus(
        setup.mixing,
        settings.periods_to_mix(setup.topology.num_nodes),
        None if exact else settings.compressor,
        None if exact else setup.gamma,
        train_periods=training.periods,
        evaluate_every=evaluate_every,
        seed=settings.seed,
    )

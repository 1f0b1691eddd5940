"""The same training through Flower: an agent's part."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from torch import Tensor, from_numpy

from fl_lowrank.consensus import FIRST_STEP_KEY, STEPS_KEY

from ..data import Dataset, load_dataset
from ..training import evaluate
from .agents import Agents
from .building import build_agents, placed
from .graphs import read_graph
from .rates import learning_rate
from .samples import Batches, share_out, steps_in_epoch
from .settings import Settings

_VELOCITY = "velocity"


def train(msg: Message, context: Context, settings: Settings) -> Message:
    """Take the local steps that are due; momentum stays in the context.

    Parameters
    ----------
    msg : Message
        The agent's model, and which steps.
    context : Context
        The agent's partition in the node config.
    settings : Settings
        The run's settings.

    Returns
    -------
    Message
        The model afterwards, and the mean loss.
    """
    config = msg.content.config_records["config"]
    first, count = _number(config, FIRST_STEP_KEY), _number(config, STEPS_KEY)
    work, agent = _workplace(settings), int(context.node_config["partition-id"])
    agents = _agent(work, settings, msg)
    if agents.velocities is not None and _VELOCITY in context.state.array_records:
        kept = context.state.array_records[_VELOCITY][_VELOCITY].numpy()
        agents.velocities[0] = from_numpy(kept).to(agents.velocities)
    losses = []
    for number in range(first, first + count):
        step = number * work.periods[agent]
        lr = learning_rate(settings, step, work.steps_per_epoch, len(work.shares))
        index = work.batches.draw(agent, number).to(work.data.train_y.device)
        batch = 0, work.data.train_x[index], work.data.train_y[index]
        losses.append(agents.train([batch], lr))
    if agents.velocities is not None:
        velocity = Array(agents.velocities[0].cpu().numpy())
        context.state[_VELOCITY] = ArrayRecord({_VELOCITY: velocity})
    model = agents.load(agents.parameters[0], agents.statistics[0])
    metrics = MetricRecord(
        {"num-examples": len(work.shares[agent]), "train_loss": sum(losses) / count}
    )
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


def evaluate_agent(msg: Message, context: Context, settings: Settings) -> Message:
    """Evaluate the agent's model on the test set.

    Parameters
    ----------
    msg : Message
        The agent's model.
    context : Context
        The agent's partition in the node config.
    settings : Settings
        The run's settings.

    Returns
    -------
    Message
        Loss and accuracy.
    """
    work, agent = _workplace(settings), int(context.node_config["partition-id"])
    agents, data = _agent(work, settings, msg), work.data
    statistics = agents.statistics[0]
    if settings.statistics == "recomputed" and len(statistics):
        own = data.train_x[work.shares[agent].to(data.train_x.device)]
        statistics = agents.recomputed(agents.parameters[0], own)
    model = agents.load(agents.parameters[0], statistics)
    loss, accuracy = evaluate(model, data.test_x, data.test_y)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


@dataclass(frozen=True)
class _Workplace:
    """What agents that share a process have in common."""

    data: Dataset
    periods: list[int]
    shares: list[Tensor]
    batches: Batches
    steps_per_epoch: int


@functools.cache
def _workplace(settings: Settings) -> _Workplace:
    data = placed(load_dataset(settings.dataset, settings.train_samples), settings)
    periods = settings.periods_to_train(read_graph(settings.topology).num_nodes)
    shares = share_out(len(data.train_y), periods, settings.seed)
    return _Workplace(
        data,
        periods,
        shares,
        Batches(shares, settings.batch_size, settings.seed),
        steps_in_epoch(shares, periods, settings.batch_size),
    )


def _agent(work: _Workplace, settings: Settings, msg: Message) -> Agents:
    """Make the one agent whose model came."""
    agents = build_agents(settings, 1, work.data)
    arrays = msg.content.array_records["arrays"]
    agents.model.load_state_dict(arrays.to_torch_state_dict())
    parameters, statistics = agents.held()
    agents.parameters[0], agents.statistics[0] = parameters, statistics
    return agents


def _number(config: ConfigRecord, key: str) -> int:
    return cast(int, config[key])

"""From settings to the parts of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_lowrank import rng
from fl_lowrank.consensus import Averaging, Choco, Pairs, contractive, tune_gamma
from fl_lowrank.consensus.choco import rows_as_tensors
from fl_lowrank.errors import CompressionError
from fl_lowrank.mixing import RULES, Mixing, metropolis
from fl_lowrank.model import ModelCodec
from fl_lowrank.topology import Topology

from ..data import Dataset
from ..errors import SimulationError, choose
from ..models import build_model
from .agents import Agents
from .methods import Compressed, Consensus, Gossip, Method
from .settings import Settings


@dataclass(frozen=True)
class Setup:
    """The agents and how they mix.

    Attributes
    ----------
    topology, mixing : Topology, Mixing
        The graph, and its weights.
    agents : Agents
        Their models.
    method : Method
        How they mix.
    message_bytes : int
        Of one agent's uncompressed model.
    gamma : float
        Step of compressed consensus; 1 if nothing is compressed.
    gamma_rates : dict[float, float]
        What was found of others, if it was tuned.
    """

    topology: Topology
    mixing: Mixing
    agents: Agents
    method: Method
    message_bytes: int
    gamma: float = 1.0
    gamma_rates: dict[float, float] = field(default_factory=dict)


def set_up(settings: Settings, topology: Topology, data: Dataset) -> Setup:
    """Make all parts of a run.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    topology : Topology
        The graph that they name.
    data : Dataset
        On the device and in the dtype of the training.

    Returns
    -------
    Setup
        The parts.
    """
    try:
        return _set_up(settings, topology, data)
    except CompressionError as error:
        raise SimulationError(str(error)) from error


def _set_up(settings: Settings, topology: Topology, data: Dataset) -> Setup:
    mixing = choose(RULES, settings.weights, "weights")(topology)
    agents = build_agents(settings, topology.num_nodes, data)
    row = rows_as_tensors(agents.parameters[0], agents.layout)
    whole = {**row, "statistics": agents.statistics[0]}
    message_bytes = _exact_bytes(whole if agents.statistics.shape[1] else row)
    periods = settings.periods_to_mix(topology.num_nodes)
    source = rng.stream(settings.seed, "mixing")
    if settings.method == "gossip":
        gossip = Gossip(
            Pairs(topology),
            settings.mix_every,
            settings.gossip_edges,
            settings.gossip_draw == "matching",
            message_bytes,
            source,
        )
        return Setup(topology, mixing, agents, gossip, message_bytes)
    # Metropolis weights are not negative, so that variances stay positive.
    averaging = Averaging(mixing, metropolis(topology))
    if settings.compressor == "none":
        consensus = Consensus(averaging, periods, message_bytes)
        return Setup(topology, mixing, agents, consensus, message_bytes)
    codec = contractive(ModelCodec(settings.compressor), agents.layout)
    gamma, rates = settings.gamma, dict[float, float]()
    if not gamma:
        tuned = tune_gamma(
            mixing,
            codec,
            agents.layout,
            source.child("tuning"),
            device=agents.parameters.device,
        )
        gamma, rates = tuned.gamma, tuned.rates
    choco = Choco(mixing, codec, agents.layout, gamma)
    statistics = {"statistics": agents.statistics[0]}
    compressed = Compressed(
        choco,
        averaging,
        periods,
        _exact_bytes(statistics) if agents.statistics.shape[1] else 0,
        source,
        choco.init(agents.parameters),
    )
    return Setup(topology, mixing, agents, compressed, message_bytes, gamma, rates)


def build_agents(settings: Settings, num_agents: int, data: Dataset) -> Agents:
    """Make agents that start from the weights of the settings' seed.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    num_agents : int
        How many.
    data : Dataset
        On the device and in the dtype of the training.

    Returns
    -------
    Agents
        The agents.
    """
    model = build_model(
        settings.model, data.sample_shape, data.num_classes, settings.seed
    )
    double = settings.precision == "float64"
    return Agents(
        model.to(data.train_x.device, data.train_x.dtype),
        num_agents,
        momentum=settings.momentum,
        precision="float32" if double else settings.precision,
    )


def _exact_bytes(tensors: dict[str, Tensor]) -> int:
    data, _ = ModelCodec("identity()").encode(tensors, {}, rng.stream(0))
    return len(data)


def placed(data: Dataset, settings: Settings) -> Dataset:
    """Move a data set to the device, and into the dtype, of a run.

    Parameters
    ----------
    data : Dataset
        As loaded.
    settings : Settings
        The run's settings.

    Returns
    -------
    Dataset
        The same samples.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SimulationError(f"--device {name!r}: {error}") from error
    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    return Dataset(
        data.train_x.to(device, dtype),
        data.train_y.to(device),
        data.test_x.to(device, dtype),
        data.test_y.to(device),
        data.num_classes,
    )

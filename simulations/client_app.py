"""The ClientApp: a client's share of the data, local SGD, local evaluation.

It knows nothing of compression but the mod in its list, which may ask for gradients.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from clients import CompressionMod, ConsensusMod

from .config import Settings
from .data import Partitioning, load_dataset, partition_dataset
from .decentralised import client
from .decentralised.arguments import from_text
from .models import build_model
from .training import evaluate, loss_gradient, train_locally

# The share of a client's samples that it does not train on.
_HELD_OUT = 0.1
# Samples of a client that its importance weights are found on; each solution takes
# several gradients.
_GRADIENT_SAMPLES = 256


def local_gradient(
    parameters: dict[str, Tensor], msg: Message, context: Context
) -> dict[str, Tensor]:
    """Differentiate the client's loss, for compressors with importance weights.

    Parameters
    ----------
    parameters : dict[str, Tensor]
        Where; all arrays of the model.
    msg : Message
        The training request, with `server-round` in its config.
    context : Context
        As of `train`.

    Returns
    -------
    dict[str, Tensor]
        Gradients on up to 256 samples, which the round decides.
    """
    settings = Settings.from_run_config(context.run_config)
    partition = int(context.node_config["partition-id"])
    server_round = cast(int, msg.content.config_records["config"]["server-round"])
    x, y = _samples(settings, context, held_out=False)
    generator = torch.Generator()
    generator.manual_seed(_seed(settings.seed, partition, server_round))
    drawn = torch.randperm(len(y), generator=generator)[:_GRADIENT_SAMPLES]
    drawn = drawn.to(y.device)
    return loss_gradient(_model(settings, parameters), x[drawn], y[drawn])


# Each mod answers the strategies that need it.
app = ClientApp(mods=[CompressionMod(gradient=local_gradient), ConsensusMod()])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the received model on the client's samples.

    Parameters
    ----------
    msg : Message
        Arrays of the model and a config with `lr` and `server-round`.
    context : Context
        The run config, and the client's partition in the node config.

    Returns
    -------
    Message
        The trained arrays; number of examples, mean loss, seconds.
    """
    start = time.perf_counter()
    settings = Settings.from_run_config(context.run_config)
    if settings.decentralised:
        return client.train(
            msg, context, from_text(settings.decentralised, settings.out)
        )
    partition = int(context.node_config["partition-id"])
    config = msg.content.config_records["config"]
    x, y = _samples(settings, context, held_out=False)
    model = _received_model(settings, msg)
    loss = train_locally(
        model,
        x,
        y,
        lr=cast(float, config["lr"]),
        momentum=settings.momentum,
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        seed=_seed(settings.seed, partition, cast(int, config["server-round"])),
        precision=settings.precision,
    )
    metrics = MetricRecord(
        {
            "num-examples": len(y),
            "train_loss": loss,
            "seconds": time.perf_counter() - start,
        }
    )
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate_locally(msg: Message, context: Context) -> Message:
    """Evaluate the received model on the client's held-out samples.

    Parameters
    ----------
    msg : Message
        Arrays of the model.
    context : Context
        The run config, and the client's partition in the node config.

    Returns
    -------
    Message
        Number of examples, loss and accuracy.
    """
    settings = Settings.from_run_config(context.run_config)
    if settings.decentralised:
        return client.evaluate_agent(
            msg, context, from_text(settings.decentralised, settings.out)
        )
    x, y = _samples(settings, context, held_out=True)
    loss, accuracy = evaluate(_received_model(settings, msg), x, y)
    metrics = MetricRecord(
        {"num-examples": len(y), "eval_loss": loss, "eval_accuracy": accuracy}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)


def _samples(
    settings: Settings, context: Context, *, held_out: bool
) -> tuple[Tensor, Tensor]:
    held, used = _partition(
        Partitioning.of(settings),
        int(context.node_config["num-partitions"]),
        int(context.node_config["partition-id"]),
        _device(),
    )
    return held if held_out else used


@functools.cache
def _partition(
    how: Partitioning, num_partitions: int, partition: int, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    data = load_dataset(how.dataset, how.train_samples)
    indices = torch.from_numpy(partition_dataset(how, num_partitions)[partition])
    held, used = indices.tensor_split([max(1, int(len(indices) * _HELD_OUT))])
    return (
        (data.train_x[held].to(device), data.train_y[held].to(device)),
        (data.train_x[used].to(device), data.train_y[used].to(device)),
    )


def _received_model(settings: Settings, msg: Message) -> nn.Module:
    return _model(settings, msg.content.array_records["arrays"].to_torch_state_dict())


def _model(settings: Settings, state: Mapping[str, Tensor]) -> nn.Module:
    data = load_dataset(settings.dataset, settings.train_samples)
    model = build_model(
        settings.model, data.sample_shape, data.num_classes, settings.seed
    )
    model.load_state_dict(state)
    return model.to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _seed(seed: int, partition: int, server_round: int) -> int:
    """Mix three numbers into one seed, so that runs repeat on any engine."""
    state = np.random.SeedSequence((seed, partition, server_round))
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))

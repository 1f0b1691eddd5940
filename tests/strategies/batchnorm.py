"""A small network with BatchNorm, really trained on data that differs by node."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from clients import CompressionMod

_LR = 0.1


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 4)
        )


def batchnorm_arrays() -> ArrayRecord:
    return ArrayRecord(network().state_dict())


def samples(partition: int) -> tuple[Tensor, Tensor]:
    """Draw a node's samples: a shifted cloud, labelled by the same linear map."""
    labeller = torch.randn(8, 4, generator=torch.Generator().manual_seed(99))
    own = torch.Generator().manual_seed(partition)
    x = torch.randn(32 + 16 * partition, 8, generator=own) + 0.3 * partition
    return x, (x @ labeller).argmax(1)


def batchnorm_app() -> ClientApp:
    """Give an app that trains two epochs of SGD, and evaluates."""
    app = ClientApp(mods=[CompressionMod()])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, x, y = _prepare(message, context)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
        for _ in range(2):
            for inputs, labels in zip(x.split(16), y.split(16), strict=True):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(y), "loss": float(loss.detach())})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model, x, y = _prepare(message, context)
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(x), y)
        metrics = MetricRecord({"num-examples": len(y), "loss": float(loss)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def _prepare(message: Message, context: Context) -> tuple[nn.Module, Tensor, Tensor]:
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model, *samples(int(context.node_config["partition-id"]))

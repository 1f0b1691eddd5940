"""A client that trains the CNN on noise, and how long it takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from simulations.models import build_model
from simulations.training import train_locally

_SHAPE, _NUM_CLASSES, _BATCH_SIZE, LR = (1, 28, 28), 10, 32, 0.01


@dataclass
class TimedApp:
    """A ClientApp, and the seconds that each of its trainings took."""

    app: ClientApp
    seconds: list[float] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; an error ends the benchmark."""
        trains = bool(message.content.array_records)  # an introduction has none
        begin = time.perf_counter()
        reply = self.app(message, context)
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        if trains:
            self.seconds.append(time.perf_counter() - begin)
        return reply


def cnn_arrays() -> ArrayRecord:
    """Give the initial model, of 1,474,550 parameters."""
    return ArrayRecord(build_model("cnn", _SHAPE, _NUM_CLASSES, 0).state_dict())


def cnn_app(mods: Sequence[Mod], num_images: int) -> TimedApp:
    """Make an app that trains the CNN for one epoch."""
    app = ClientApp(mods=list(mods))
    model = build_model("cnn", _SHAPE, _NUM_CLASSES, 0)
    x, y = noise(num_images)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train_locally(
            model, x, y, lr=LR, momentum=0.0, epochs=1, batch_size=_BATCH_SIZE, seed=0
        )
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": num_images}),
        }
        return Message(RecordDict(content), reply_to=message)

    return TimedApp(app)


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Draw images and labels; training takes as long as on real ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *_SHAPE, generator=generator)
    return x, torch.randint(_NUM_CLASSES, (count,), generator=generator)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Flower's many lines a round to its warnings."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)

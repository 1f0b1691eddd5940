"""Small federations over the loopback grid, and what they compute, by hand."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common import Context
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from clients import CompressionMod
from simulations.loopback import LoopbackGrid

NUM_NODES = 4
DIM = 30
LR = 0.1
NUM_STEPS = 3


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def num_examples(partition: int) -> int:
    return 10 * (partition + 1)


def local_steps(w: np.ndarray, partition: int, lr: float = LR) -> np.ndarray:
    """Let one node walk towards its own minimum; in float64."""
    rng = np.random.default_rng(partition)
    target, curvature = 3.0 * rng.normal(size=DIM), rng.uniform(0.5, 1.5, size=DIM)
    w = w.astype(np.float64)
    for _ in range(NUM_STEPS):
        w = w - lr * curvature * (w - target)
    return w


def fedavg_by_hand(num_rounds: int, nodes: Iterable[int], lr: float = LR) -> np.ndarray:
    """What FedAvg gives after some rounds with these nodes, in float64."""
    nodes = list(nodes)
    w = np.zeros(DIM)
    weights = [num_examples(i) for i in nodes]
    for _ in range(num_rounds):
        w = np.average([local_steps(w, i, lr) for i in nodes], axis=0, weights=weights)
    return w


def quadratic_app(mods: Sequence[Mod] | None = None) -> ClientApp:
    """Give an app that knows nothing of compression but its mods."""
    app = ClientApp(mods=[CompressionMod()] if mods is None else list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = partition_of(context)
        received = message.content["arrays"]
        lr = float(message.content["config"].get("lr", LR))
        w = received["w"].numpy()
        arrays = {"w": Array(local_steps(w, partition, lr).astype(w.dtype))}
        if "bn.running_mean" in received:
            count = received["bn.num_batches_tracked"].numpy()
            mean = np.full(3, float(partition), np.float32)
            arrays["bn.running_mean"] = Array(mean)
            arrays["bn.num_batches_tracked"] = Array(np.asarray(count + 5))
        metrics = {"num-examples": num_examples(partition), "loss": 1.0 + partition}
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        partition = partition_of(context)
        error = local_steps(message.content["arrays"]["w"].numpy(), partition)
        metrics = {
            "num-examples": num_examples(partition),
            "error": float(np.linalg.norm(error)),
        }
        content = RecordDict({"metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    return app


class Overriding(FedAvg):
    """Of its own class, so that it gets every reply, as if it looked at single ones."""

    def aggregate_train(self, *args: object) -> object:
        return super().aggregate_train(*args)


def initial_arrays(*, buffers: bool = False) -> ArrayRecord:
    arrays = {"w": Array(np.zeros(DIM, np.float32))}
    if buffers:
        arrays["bn.running_mean"] = Array(np.zeros(3, np.float32))
        arrays["bn.num_batches_tracked"] = Array(np.array(0))
    return ArrayRecord(arrays)


def changing(change: Callable[[Message], object], *partitions: int) -> Mod:
    """Give a mod that changes what some nodes answer to training.

    Before `CompressionMod` in the list it is a hostile client, after it a mistaken
    one.
    """

    def mod(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        reply = call_next(message, context)
        trains = message.metadata.message_type == "train"
        if not trains or reply.has_error() or not reply.content.array_records:
            return reply
        if partition_of(context) in partitions:
            change(reply)
        return reply

    return mod


def train(
    strategy: Strategy,
    app: ClientApp | None = None,
    *,
    num_rounds: int = 2,
    num_nodes: int = NUM_NODES,
    grid: LoopbackGrid | None = None,
    arrays: ArrayRecord | None = None,
    config: ConfigRecord | None = None,
    **options: object,
) -> Result:
    """Run a strategy; Flower's sampling, which is global, is seeded."""
    grid = LoopbackGrid(app or quadratic_app(), num_nodes) if grid is None else grid
    random.seed(1)
    return strategy.start(
        grid,
        initial_arrays() if arrays is None else arrays,
        num_rounds=num_rounds,
        train_config=ConfigRecord({"lr": LR}) if config is None else config,
        **options,
    )


def distance(a: ArrayRecord, b: ArrayRecord) -> float:
    """Norm of the difference over the norm of the model, of its real numbers."""
    assert list(a) == list(b)
    above, below = 0.0, 0.0
    for name, array in a.items():
        if name.endswith("num_batches_tracked"):
            continue
        x, y = array.numpy().astype(np.float64), b[name].numpy().astype(np.float64)
        above += float(np.sum((x - y) ** 2))
        below += float(np.sum(x**2))
    return float(np.sqrt(above / below))


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the warnings that go through Flower's logger."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)

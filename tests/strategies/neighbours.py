"""A small federation of nodes with models of their own, over the loopback grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from clients import ConsensusMod
from clients.storage import load
from fl_lowrank import topology
from fl_lowrank.consensus import FIRST_STEP_KEY, STEPS_KEY
from fl_lowrank.mixing import max_degree
from simulations.loopback import LoopbackGrid
from strategies import AsynchronousGossip, Consensus, Gossip
from strategies.decentralised import Decentralised

NUM_NODES = 4
DIM = 24
RATE = 0.2
CYCLE = topology.cycle(NUM_NODES)
MIXING = max_degree(CYCLE)
COMPRESSED: dict[str, Any] = {"compressor": "topk(fraction=0.5)", "gamma": 0.4}
STRATEGIES: dict[str, Callable[[], Decentralised]] = {
    "consensus": lambda: Consensus(MIXING),
    "compressed": lambda: Consensus(MIXING, **COMPRESSED),
    "gossip": lambda: Gossip(CYCLE, 3),
    "one edge": lambda: Gossip(CYCLE, 1),
    "asynchronous": lambda: AsynchronousGossip(CYCLE),
}


def target(partition: int) -> np.ndarray:
    return np.random.default_rng(partition).normal(size=DIM) + 1.0


class App:
    """Nodes that walk to their own targets, as long as the step is below ``steps``.

    Or, with noise, in random directions.

    Attributes
    ----------
    moved : np.ndarray
        Sum of all that was ever trained, float64.
    steps : list
        Partition and number of every local step that was taken.
    """

    def __init__(
        self,
        num_steps: float = np.inf,
        mods: Sequence[Mod] | None = None,
        noise: float = 0.0,
    ):
        self.moved = np.zeros(DIM)
        self.taken: list[tuple[int, int]] = []
        self.app = ClientApp(mods=[ConsensusMod()] if mods is None else list(mods))

        @self.app.train()
        def train(message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            (record,) = message.content.array_records.values()
            config = message.content["config"]
            before = record["w"].numpy()
            w, count = before.astype(np.float64), record["count"].numpy()
            first = int(config[FIRST_STEP_KEY])
            for number in range(first, first + int(config[STEPS_KEY])):
                self.taken.append((partition, number))
                if noise:
                    rng = np.random.default_rng((partition, number))
                    w = w + noise * rng.normal(size=DIM)
                elif number < num_steps:
                    w = w - RATE * (w - target(partition))
            after = w.astype(before.dtype)
            self.moved += after.astype(np.float64) - before
            arrays = {"w": Array(after), "count": Array(np.asarray(count + 1))}
            content = {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord({"loss": 1.0 + partition}),
            }
            return Message(RecordDict(content), reply_to=message)

        @self.app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            w = message.content["arrays"]["w"].numpy()
            error = float(np.linalg.norm(w - target(partition)))
            metrics = MetricRecord({"error": error, "partition": partition})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)


def initial(dtype: type = np.float32) -> ArrayRecord:
    arrays = {"w": Array(np.ones(DIM, dtype)), "count": Array(np.array(0))}
    return ArrayRecord(arrays)


def train(
    strategy: Decentralised, app: App, num_rounds: int, grid: LoopbackGrid | None = None
) -> tuple[Result, LoopbackGrid]:
    grid = LoopbackGrid(app.app, NUM_NODES) if grid is None else grid
    result = strategy.start(grid, initial(), num_rounds)
    return result, grid


def sum_of_models(strategy: Decentralised, grid: LoopbackGrid) -> np.ndarray:
    """Sum of the models that nodes remember and of the flows not in them, float64."""
    total = np.zeros(DIM)
    for box, copy, node in zip(
        strategy.room.boxes, strategy.room.public, grid.node_ids, strict=True
    ):
        memory = load(grid.contexts[node])
        if memory is None:
            total += copy.double().numpy()
        else:
            total += memory.tensors["model/w"].double().numpy()
            total += memory.tensors["rest/w"].double().numpy()
        if box.flow is not None and (memory is None or memory.epoch != box.flow_id):
            total += box.flow.numpy()
    return total


def models(strategy: Decentralised) -> np.ndarray:
    """The models of the last evaluation, by vertex."""
    found = strategy.survey.models
    return np.stack([found[i]["w"].numpy() for i in sorted(found)])


def distance(found: np.ndarray) -> float:
    """Largest distance to the mean."""
    return float(np.linalg.norm(found - found.mean(axis=0), axis=1).max())


class Watched(Consensus):
    """Calls a function before each round."""

    before: Callable[[int], None] = staticmethod(lambda number: None)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.before(server_round)
        return super().configure_train(server_round, arrays, config, grid)

"""EF21 with full gradients through the whole of it: Flower's strategy, mod and files.

The memories alone, in float64 and with each fate by itself, are in
``tests/simulations/test_lossy.py``; here the same happens at once to real messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Context
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod, FileHome
from simulations.loopback import EventKind, Fault, Faults, LoopbackGrid, RandomFaults
from simulations.lossy.cases import NUM_CLIENTS, quadratics
from simulations.quadratics import Problem
from strategies import Compressed

from .federation import partition_of

NUM_ROUNDS = 450


def gradient_app(problem: Problem, folder: Path) -> ClientApp:
    """Give an app whose training is one step along the full local gradient."""
    app = ClientApp(mods=[CompressionMod(memory=FileHome(folder, durable=False))])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        x = message.content["arrays"]["x"].numpy()
        lr = float(message.content["config"]["lr"])
        gradients = problem.gradients(torch.from_numpy(x.astype(np.float64)))
        trained = x - lr * gradients[partition_of(context)].numpy()
        content = {
            "arrays": ArrayRecord({"x": Array(trained.astype(np.float32))}),
            "metrics": MetricRecord({"num-examples": 100}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


@dataclass(frozen=True)
class OnceKnown(Faults):
    """Faults that begin after the first exchange, in which nodes introduce themselves.

    Who is not heard then is asked again after half a minute; until it answers, the
    others alone have another minimum.
    """

    faults: Faults

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        return self.faults.at(exchange, node, attempt) if exchange > 1 else Fault()


@pytest.mark.slow  # 20 s of the processor, for 3000 replies
@pytest.mark.timeout(1800)
def test_it_reaches_the_floor_of_float32(tmp_path: Path) -> None:
    """A norm of 1e-7, of 0.85 at the start, whatever is lost and whoever is killed.

    There replies are rounded: by 3e-8 for entries of about 1, over a step of 1.9, in 50
    entries of the mean of 20 clients.
    """
    problem = quadratics()
    norms: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        del server_round
        x = torch.from_numpy(arrays["x"].numpy().astype(np.float64))
        norms.append(float(problem.gradients(x).mean(dim=0).norm()))

    losses = RandomFaults(1, lose_request=0.2, lose_reply=0.2, crash_after_reply=0.2)
    grid = LoopbackGrid(
        gradient_app(problem, tmp_path), NUM_CLIENTS, faults=OnceKnown(losses)
    )
    strategy = Compressed(
        FedAvg(fraction_train=0.5, fraction_evaluate=0.0),
        "*: topk(fraction=0.1)",
        "ef21",
    )
    strategy.start(
        grid,
        ArrayRecord({"x": Array(np.zeros(problem.dimension, np.float32))}),
        num_rounds=NUM_ROUNDS,
        train_config=ConfigRecord({"lr": 1.0 / problem.smoothness}),
        evaluate_fn=evaluate,
    )
    assert norms[0] > 0.5
    assert max(norms[-30:]) < 1e-6
    counts, asked = grid.counts(), NUM_ROUNDS * NUM_CLIENTS // 2
    assert counts[EventKind.REQUEST_LOST] > 0.15 * asked
    assert counts[EventKind.REPLY_LOST] > 0.12 * asked
    assert counts[EventKind.CRASHED_AFTER_REPLY] > 0.12 * asked

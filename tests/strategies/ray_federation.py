"""Trainings on Flower's Ray engine, run as a program: strategies plain and wrapped.

All share one run, so that Ray starts once. Prints, as JSON, by strategy the relative
deviation of the wrapped from the plain one, and how far the plain one has moved.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from flwr.app import ConfigRecord, Context
from flwr.server import Grid
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Result, Strategy
from flwr.simulation import run_simulation

from strategies import Compressed
from tests.strategies.batchnorm import batchnorm_app, batchnorm_arrays
from tests.strategies.federation import distance

NUM_NODES = 3
NUM_ROUNDS = 10

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedAdam": lambda: FedAdam(fraction_evaluate=0.0, eta=0.01),
}

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    del context

    def run(strategy: Strategy) -> Result:
        config = ConfigRecord({"lr": 0.1})
        return strategy.start(grid, batchnorm_arrays(), NUM_ROUNDS, train_config=config)

    measured = {}
    for name, make in STRATEGIES.items():
        plain = run(make())
        wrapped = Compressed(make(), uplink="identity()")
        ours = run(wrapped)
        measured[name] = {
            "deviation": distance(plain.arrays, ours.arrays),
            "moved": distance(batchnorm_arrays(), plain.arrays),
            "num_rounds": len(ours.train_metrics_clientapp),
            "num_replies": sum(r["num_replies"] for r in wrapped.ledger.rounds()),
        }
    with open(sys.argv[1], "w") as file:
        json.dump(measured, file)


if __name__ == "__main__":
    run_simulation(
        server_app=server_app,
        client_app=batchnorm_app(),
        num_supernodes=NUM_NODES,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )

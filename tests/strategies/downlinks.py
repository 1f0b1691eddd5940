"""Small federations whose models come compressed, with the oracle that watches them."""

from __future__ import annotations

from flwr.app import ArrayRecord

from clients import CompressionMod
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import (
    NUM_NODES,
    initial_arrays,
    quadratic_app,
    train,
)
from tests.strategies.reference_oracle import ReferenceOracle, downlink_of
from tests.strategies.test_ledger import CountingGrid

UPLINK = "*: topk(fraction=0.5)"
DOWNLINK = "*: natural()"


def watched(num_nodes: int = NUM_NODES) -> tuple[LoopbackGrid, ReferenceOracle]:
    grid = CountingGrid(quadratic_app(), num_nodes)
    oracle = ReferenceOracle(grid, initial_arrays(buffers=True))
    grid.client_app = quadratic_app([CompressionMod(), oracle.mod])
    return grid, oracle


def run(
    strategy: Compressed, num_rounds: int, num_nodes: int = NUM_NODES
) -> tuple[ArrayRecord, ReferenceOracle, LoopbackGrid]:
    grid, oracle = watched(num_nodes)
    arrays = initial_arrays(buffers=True)
    result = train(strategy, grid=grid, arrays=arrays, num_rounds=num_rounds)
    oracle.check_clients()
    oracle.check_server(downlink_of(strategy))
    return result.arrays, oracle, grid

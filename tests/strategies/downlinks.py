"""Small federations whose models come compressed, with the oracle that watches them."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod, FileHome
from simulations.loopback import Faults, LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import (
    LR,
    NUM_NODES,
    initial_arrays,
    quadratic_app,
    train,
)
from tests.strategies.reference_oracle import (
    ReferenceOracle,
    broadcast_in,
    downlink_of,
)
from tests.strategies.test_ledger import CountingGrid

UPLINK = "*: topk(fraction=0.5)"
DOWNLINK = "*: natural()"


CHAINED = [(node, False) for node in range(NUM_NODES)]
WHOLE = [(node, True) for node in range(NUM_NODES)]


def watched(
    num_nodes: int = NUM_NODES,
    faults: Faults | None = None,
    home: FileHome | None = None,
) -> tuple[LoopbackGrid, ReferenceOracle]:
    grid = CountingGrid(quadratic_app(), num_nodes, faults=faults)
    oracle = ReferenceOracle(grid, initial_arrays(buffers=True))
    mod = CompressionMod() if home is None else CompressionMod(memory=home)
    grid.client_app = quadratic_app([mod, oracle.mod])
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


def inner(fraction: float = 1.0) -> FedAvg:
    return FedAvg(
        fraction_train=fraction,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=1,
    )


def play(
    grid: LoopbackGrid, strategy: Compressed, num_rounds: int, **options: object
) -> list[list[tuple[int, bool]]]:
    """Train; gives for each round who trained, and if on a model sent as a whole."""
    rounds: list[list[tuple[int, bool]]] = [[]]
    saw, config = grid.on_request, ConfigRecord({"lr": LR})

    def note(message: Message) -> None:
        assert saw is not None
        saw(message)
        sent = broadcast_in(message)
        if sent is not None:
            node = grid.node_ids.index(message.metadata.dst_node_id)
            rounds[-1].append((node, sent.is_whole))

    def begin(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            rounds.append([])

    grid.on_request = note
    arrays = initial_arrays(buffers=True)
    train(
        strategy,
        grid=grid,
        arrays=arrays,
        num_rounds=num_rounds,
        config=config,
        evaluate_fn=begin,
        **options,
    )
    return [sorted(r) for r in rounds[:-1]]

"""What nodes and users may do wrong in decentralised training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from clients import ConsensusMod
from clients.storage import load
from fl_lowrank.errors import SettingError
from fl_lowrank.mixing import Mixing, metropolis
from simulations.loopback import Fault, LoopbackGrid, ScriptedFaults
from strategies import AsynchronousGossip, Compressed, Consensus, Gossip
from tests.strategies.federation import logged
from tests.strategies.neighbours import (
    CYCLE,
    MIXING,
    NUM_NODES,
    STRATEGIES,
    App,
    models,
    train,
)

BAD = 1


def change_replies(change: Callable[[Message, int], None]) -> Any:
    """A mod, inside of ConsensusMod, for the bad node's replies; with their number."""
    calls = [0]

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if context.node_config["partition-id"] == BAD:
            calls[0] += 1
            change(reply, calls[0])
        return reply

    return mod


def claim_huge_numbers(reply: Message, number: int) -> None:
    for record in reply.content.array_records.values():
        if "w" in record:
            value = 3e38 if number % 2 else -3e38
            record["w"] = Array(np.full_like(record["w"].numpy(), value))


@pytest.mark.parametrize("name", STRATEGIES)
def test_numbers_that_cannot_be_mixed_are_left_out(name: str) -> None:
    """Their differences would be infinite, and end the training of all."""
    app = App(mods=[ConsensusMod(), change_replies(claim_huge_numbers)])
    grid = LoopbackGrid(app.app, NUM_NODES)
    strategy = STRATEGIES[name]()
    with logged() as lines:
        train(strategy, app, 12, grid)
    assert any("left out vertex 1: " in x and "has diverged" in x for x in lines)
    assert not any("left out vertex 0" in line for line in lines)
    good = np.delete(models(strategy), BAD, axis=0)
    assert np.abs(good).max() < 10.0


def measure(change: Callable[[MetricRecord], None]) -> Any:
    def changed(reply: Message, number: int) -> None:
        del number
        for record in reply.content.metric_records.values():
            change(record)

    return change_replies(changed)


@pytest.mark.parametrize("value", [1e200, -1e308, np.inf, np.nan, 2**62])
def test_a_metric_that_overflows_ends_nothing(value: float) -> None:
    mod = measure(lambda record: record.update(error=value, loss=value))
    app = App(mods=[ConsensusMod(), mod])
    strategy = Consensus(MIXING)
    result, _ = train(strategy, app, 3, LoopbackGrid(app.app, NUM_NODES))
    found = result.evaluate_metrics_clientapp[3]
    assert found["error_agents"][BAD] == pytest.approx(value, nan_ok=True)
    assert found["error_deviation"] > 1e17 or np.isnan(value)
    assert found["partition_agents"] == [0.0, 1.0, 2.0, 3.0]


def test_a_node_without_metrics_does_not_hide_those_of_others() -> None:
    app = App(mods=[ConsensusMod(), measure(MetricRecord.clear)])
    result, _ = train(Consensus(MIXING), app, 3, LoopbackGrid(app.app, NUM_NODES))
    found = result.evaluate_metrics_clientapp[3]
    assert found["partition"] == pytest.approx(5 / 3)
    assert found["partition_deviation"] == pytest.approx(np.std([0, 2, 3]))
    assert np.isnan(found["partition_agents"][BAD])
    assert np.delete(found["partition_agents"], BAD).tolist() == [0.0, 2.0, 3.0]
    assert result.train_metrics_clientapp[3]["loss"] == pytest.approx(8 / 3)


def test_a_metric_of_one_node_alone_is_not_one_of_the_training() -> None:
    app = App(mods=[ConsensusMod(), measure(lambda record: record.update(mine=1.0))])
    result, _ = train(Consensus(MIXING), app, 3, LoopbackGrid(app.app, NUM_NODES))
    assert "mine" not in result.evaluate_metrics_clientapp[3]


def test_a_dead_node_that_is_listed_first_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App()
    grid = LoopbackGrid(
        app.app, NUM_NODES, faults=ScriptedFaults({(1, 3): Fault(reply=())})
    )
    listed, looks = list(grid.node_ids), [0]

    def get_node_ids() -> list[int]:
        looks[0] += 1
        return listed[-1:] if looks[0] == 1 else listed

    monkeypatch.setattr(grid, "get_node_ids", get_node_ids)
    monkeypatch.setattr("strategies.post._POLL_SECONDS", 0.01)
    monkeypatch.setattr("strategies.directory.RETRY_SECONDS", 0.0)
    strategy = Consensus(MIXING)
    train(strategy, app, 3, grid)
    assert len(models(strategy)) == NUM_NODES


def test_two_spellings_of_a_partition_are_not_one_vertex() -> None:
    app = App()
    configs: list[dict[str, Any]] = [{}, {}, {}, {}, {"partition-id": "00"}]
    grid = LoopbackGrid(app.app, 5, node_configs=configs)
    strategy = Consensus(MIXING)
    with logged() as lines:
        train(strategy, app, 4, grid)
    assert any("no vertex of the graph: partition-00" in line for line in lines)
    assert {node for node, _ in app.taken} == set(range(NUM_NODES))


def test_public_copies_are_to_the_bit_what_nodes_have() -> None:
    """Also where one array is float64 and makes the server's rows float64."""
    app = ClientApp(mods=[ConsensusMod()])

    @app.train()
    def step(message: Message, context: Context) -> Message:
        del context
        record = message.content["arrays"]
        rng = np.random.default_rng(int(record["count"].numpy()))
        moved = {
            name: Array((x + rng.normal(size=x.shape)).astype(dtype))
            for name, dtype in (("w", np.float32), ("wide", np.float64))
            for x in [record[name].numpy()]
        }
        moved["count"] = Array(np.asarray(record["count"].numpy() + 1))
        message.content["arrays"] = ArrayRecord(moved)
        return Message(message.content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        del context
        message.content["metrics"] = MetricRecord()
        del message.content["arrays"]
        return Message(message.content, reply_to=message)

    arrays = ArrayRecord(
        {
            "w": Array(np.ones(30, np.float32)),
            "wide": Array(np.ones(5)),
            "count": Array(np.array(0)),
        }
    )
    strategy = Consensus(MIXING, compressor="qsgd(levels=7)", gamma=0.2)
    grid = LoopbackGrid(app, NUM_NODES)
    strategy.start(grid, arrays, 60)
    for vertex, node in enumerate(grid.node_ids):
        memory = load(grid.contexts[node])
        public = strategy.room.rows.cut(strategy.room.public[vertex])
        assert np.array_equal(public["w"].numpy(), memory.tensors["public/w"].numpy())


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a graph for weights": (
        lambda: Consensus(CYCLE),
        r"expected a Mixing, such as metropolis\(topology.cycle\(4\)\), found a Topol",
    ),
    "weights for a graph": (lambda: Gossip(MIXING), "a Topology, .* found a Mixing"),
    "a graph of networkx": (
        lambda: metropolis(nx.cycle_graph(4)),
        r"cycle\(4\) or from_networkx\(graph\), found a Graph",
    ),
    "rho of 1": (lambda: Consensus(Mixing(CYCLE, [0.5] * 4)), "rho is 1 and must be"),
    "rho of 3": (lambda: Consensus(Mixing(CYCLE, [1.0] * 4)), "rho is 3 and must be"),
    "half a period": (lambda: Consensus(MIXING, 1.5), "4 periods, integers of"),
    "half an edge": (lambda: Gossip(CYCLE, 2.5), "num_edges, an integer .* found 2.5"),
    "no period": (lambda: Gossip(CYCLE, period=0), "period, an integer .* found 0"),
    "evaluate every -1": (
        lambda: AsynchronousGossip(CYCLE, evaluate_every=-1),
        "evaluate_every, an integer of at least 0, found -1",
    ),
    "one pattern": (
        lambda: Gossip(CYCLE, exact="*.bias"),
        r"a list of patterns, found '\*.bias'; write \['\*.bias'\]",
    ),
    "one pattern, compressed": (
        lambda: Compressed(FedAvg(), exact="*.bias"),
        r"a list of patterns, found '\*.bias'; write \['\*.bias'\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_by_name(name: str) -> None:
    make, reason = MISTAKES[name]
    with pytest.raises(SettingError, match=reason):
        make()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_model_without_parameters_is_refused(name: str) -> None:
    strategy = STRATEGIES[name]()
    strategy.exact = ("*",)
    app = App()
    with pytest.raises(SettingError, match="a model with parameters to mix"):
        train(strategy, app, 1)

"""`Consensus` and `Gossip` over the loopback grid: equations, faults, restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from clients import CompressionMod, ConsensusMod, FileHome
from fl_lowrank import topology
from fl_lowrank.errors import ProtocolError, SettingError
from fl_lowrank.mixing import max_degree
from simulations.loopback import Fault, Faults, LoopbackGrid, RandomFaults
from strategies import AsynchronousGossip, Consensus, Gossip, post
from tests.strategies.federation import logged
from tests.strategies.neighbours import (
    COMPRESSED,
    CYCLE,
    DIM,
    MIXING,
    NUM_NODES,
    RATE,
    STRATEGIES,
    App,
    Watched,
    distance,
    initial,
    models,
    sum_of_models,
    target,
    train,
)

W = MIXING.matrix.numpy()


def by_hand(num_rounds: int, period: int = 1) -> np.ndarray:
    x = np.ones((NUM_NODES, DIM))
    targets = np.stack([target(i) for i in range(NUM_NODES)])
    for step in range(num_rounds):
        x = x - RATE * (x - targets)
        if step % period == 0:
            x = W @ x
    return x


@pytest.mark.parametrize("period", [1, 3])
def test_it_is_local_steps_and_a_matrix(period: int) -> None:
    strategy, app = Consensus(MIXING, period), App()
    result, grid = train(strategy, app, 8)
    np.testing.assert_allclose(models(strategy), by_hand(8, period), rtol=1e-5)
    mean = models(strategy).mean(axis=0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), mean, rtol=1e-6)
    # All steps were taken, in order, in as few messages as there are mixings.
    for node in range(NUM_NODES):
        assert [k for i, k in app.taken if i == node] == list(range(8))
    trained = [m for m in grid.messages if m.message_type == "train"]
    mixings = len(range(0, 8, period)) + (period > 1)  # the last steps send nothing
    assert len(trained) == 2 * NUM_NODES * (mixings + 1)  # and the introduction
    # Integers are every node's own: one for each call.
    assert int(result.arrays["count"].numpy()) == mixings


def test_metrics_tell_of_every_node_and_edge() -> None:
    strategy = Consensus(MIXING, evaluate_every=2)
    result, _ = train(strategy, App(), 5)
    assert list(result.evaluate_metrics_clientapp) == [2, 4, 5]
    last = result.evaluate_metrics_clientapp[5]
    found = models(strategy)
    errors = [float(np.linalg.norm(x - target(i))) for i, x in enumerate(found)]
    assert last["partition_agents"] == [0.0, 1.0, 2.0, 3.0]
    assert last["error_agents"] == pytest.approx(errors, rel=1e-5)
    assert last["error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert last["error_deviation"] == pytest.approx(np.std(errors), rel=1e-4)
    mean = found.mean(axis=0)
    apart = np.sqrt(((found - mean) ** 2).sum(axis=1).mean()) / np.linalg.norm(mean)
    assert last["consensus_distance"] == pytest.approx(apart, rel=1e-5)
    assert last["num_nodes"] == NUM_NODES
    # One message over each edge each way, of a little more than the numbers.
    size = last["bytes"] / last["messages"]
    assert last["messages"] == 5 * 2 * len(CYCLE.edges)
    assert 4 * DIM < size < 4 * DIM + 30
    assert last["bytes_per_edge"] == last["bytes_per_edge_most"] == 10 * size
    assert result.train_metrics_clientapp[5]["loss"] == 2.5
    assert result.train_metrics_clientapp[5]["num_mixed"] == 4


def test_the_server_evaluates_the_mean_model() -> None:
    strategy, seen = Consensus(MIXING), {}

    def evaluate(number: int, arrays: Any) -> None:
        seen[number] = arrays["w"].numpy()

    strategy.start(
        LoopbackGrid(App().app, NUM_NODES),
        initial(),
        3,
        evaluate_fn=evaluate,
    )
    assert list(seen) == [0, 3]
    np.testing.assert_allclose(seen[3], models(strategy).mean(axis=0), rtol=1e-6)


def test_unequal_nodes_mix_when_both_ends_are_due() -> None:
    periods = (1, 1, 2, 2)
    strategy = Consensus(MIXING, periods, train_periods=periods)
    app = App()
    _, grid = train(strategy, app, 9)
    x, targets = np.ones((NUM_NODES, DIM)), [target(i) for i in range(NUM_NODES)]
    for step in range(9):
        due = [step % period == 0 for period in periods]
        for i in range(NUM_NODES):
            if due[i]:
                x[i] -= RATE * (x[i] - targets[i])
        w = np.eye(NUM_NODES)
        for (i, j), weight in zip(CYCLE.edges, MIXING.weights.tolist(), strict=True):
            if due[i] and due[j]:
                w[[i, j], [i, j]] -= weight
                w[[i, j], [j, i]] += weight
        x = w @ x
    np.testing.assert_allclose(models(strategy), x, rtol=1e-5)
    counts = [sum(i == node for i, _ in app.taken) for node in range(NUM_NODES)]
    assert counts == [9, 9, 5, 5]
    total = sum_of_models(strategy, grid) - app.moved
    np.testing.assert_allclose(total, NUM_NODES * np.ones(DIM), rtol=1e-7)


def test_a_node_that_only_mixes_is_not_asked_to_train() -> None:
    strategy, app = Consensus(MIXING, train_periods=(1, 1, 1, 3)), App()
    result, _ = train(strategy, app, 6)
    assert [k for i, k in app.taken if i == 3] == [0, 1]
    assert [m["num_replies"] for m in result.train_metrics_clientapp.values()] == [
        4
    ] * 6
    losses = [m["loss"] for m in result.train_metrics_clientapp.values()]
    assert losses == [2.5, 2.0, 2.0, 2.5, 2.0, 2.0]  # of those who trained
    x, targets = np.ones((NUM_NODES, DIM)), [target(i) for i in range(NUM_NODES)]
    for step in range(6):
        for i in range(NUM_NODES):
            if i < 3 or step % 3 == 0:
                x[i] -= RATE * (x[i] - targets[i])
        x = W @ x
    np.testing.assert_allclose(models(strategy), x, rtol=1e-5)


def test_gossip_averages_pairs() -> None:
    strategy = Gossip(CYCLE, 3, seed=5)
    train(strategy, App(), 6)
    x, targets = np.ones((NUM_NODES, DIM)), [target(i) for i in range(NUM_NODES)]
    for step in range(6):
        x -= RATE * (x - targets)
        for edge in strategy.edges_at(step).tolist():
            ends = list(CYCLE.edges[edge])
            x[ends] = x[ends].mean(axis=0)
    np.testing.assert_allclose(models(strategy), x, rtol=1e-5)
    assert strategy.room.edges.totals()["messages"] == 6 * 2 * 3


def test_asynchronous_gossip_follows_its_clocks() -> None:
    strategy, app = AsynchronousGossip(CYCLE, (1.0, 1.0, 4.0, 2.0), seed=1), App()
    result, grid = train(strategy, app, 40)
    x, targets, now = np.ones((NUM_NODES, DIM)), [target(i) for i in range(4)], 0.0
    ticks = [strategy.tick_at(step) for step in range(40)]
    for step, tick in enumerate(ticks):
        x[tick.vertex] -= RATE * (x[tick.vertex] - targets[tick.vertex])
        ends = list(CYCLE.edges[tick.edge])
        assert tick.vertex in ends
        x[ends] = x[ends].mean(axis=0)
        now += tick.wait
        found = result.train_metrics_clientapp[step + 1]
        assert found["time"] == pytest.approx(now)
        assert found["num_mixed"] == 1
        assert found["loss"] == 1.0 + tick.vertex
    np.testing.assert_allclose(models(strategy), x, rtol=1e-5)
    # Each node's steps are numbered, and nobody is asked who is not called.
    assert app.taken == [
        (tick.vertex, sum(t.vertex == tick.vertex for t in ticks[:step]))
        for step, tick in enumerate(ticks)
    ]
    trained = [m for m in grid.messages if m.message_type == "train"]
    assert len(trained) == 2 * (2 * 40 + NUM_NODES)
    expected = NUM_NODES * np.ones(DIM) + app.moved
    np.testing.assert_allclose(models(strategy).sum(axis=0), expected, rtol=1e-6)
    with pytest.raises(SettingError, match="expected 4 speeds above 0"):
        AsynchronousGossip(CYCLE, (1.0, 0.0, 1.0, 1.0))


class Later(Faults):
    """Faults between the introduction and the last rounds."""

    def __init__(self, faults: Faults, end: int) -> None:
        self.faults, self.end = faults, end

    def at(self, exchange: int, node: int, attempt: int) -> Fault:
        inside = 1 < exchange < self.end
        return self.faults.at(exchange, node, attempt) if inside else Fault()

    def shuffle(self, exchange: int, direction: Any, arrivals: list[Any]) -> None:
        self.faults.shuffle(exchange, direction, arrivals)


_LONG = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("name", "num_rounds"),
    [
        *((name, 40) for name in ("consensus", "compressed", "gossip")),
        # With two requests a round there are rounds in a row without a reply.
        *((name, 520) for name in ("one edge", "asynchronous")),
        *(pytest.param(name, 10_000, marks=_LONG) for name in STRATEGIES),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.03], ids=["pull", "noise"])
def test_lost_messages_leave_the_mean_where_it_is(
    name: str, num_rounds: int, noise: float
) -> None:
    """Where the nodes are always pulled the same way, and where they wander."""
    weather = RandomFaults(
        seed=3,
        lose_request=0.2,
        lose_reply=0.2,
        duplicate_request=0.1,
        duplicate_reply=0.1,
        delay=0.1,
        crash_before_save=0.0,
    )
    strategy, app = STRATEGIES[name](), App(noise=noise)
    end = num_rounds - 10
    grid = LoopbackGrid(app.app, NUM_NODES, faults=Later(weather, end))
    result, _ = train(strategy, app, num_rounds, grid)
    expected = NUM_NODES * np.ones(DIM) + app.moved
    drift = np.linalg.norm(sum_of_models(strategy, grid) - expected)
    drift /= np.linalg.norm(expected)
    print(f"{name}: drift of the mean {drift:.1e} after {num_rounds} rounds")
    assert drift < 1e-12
    # All flows have come: so it is with the models themselves, rounded once.
    gap = np.linalg.norm(models(strategy).sum(axis=0) - expected)
    assert gap < 6e-8 * np.linalg.norm(expected)
    mixed = [m["num_mixed"] for m in result.train_metrics_clientapp.values()]
    asked = [len(strategy.edges_at(k)) for k in range(num_rounds)]
    assert 0 < sum(mixed[: end - 2]) < 0.7 * sum(asked[: end - 2])
    assert mixed[-5:] == asked[-5:]


def test_files_survive_crashes(tmp_path: Path) -> None:
    """A client that dies before Flower saves its Context has lost nothing."""
    weather = RandomFaults(
        seed=4,
        lose_reply=0.1,
        crash_before_save=0.1,
        crash_after_reply=0.2,
        lose_memory=0.2,
    )
    app = App(mods=[ConsensusMod(FileHome(tmp_path, durable=False))])
    strategy = Consensus(MIXING, **COMPRESSED)
    grid = LoopbackGrid(app.app, NUM_NODES, faults=Later(weather, 20))
    with logged() as lines:
        train(strategy, app, 25, grid)
    assert grid.counts()["memory_lost"] > 5
    assert grid.counts()["crashed_before_save"] > 2
    assert not [line for line in lines if "has lost its model" in line]
    expected = NUM_NODES * np.ones(DIM) + app.moved
    gap = np.linalg.norm(models(strategy).sum(axis=0) - expected)
    assert gap < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("options", [{}, COMPRESSED], ids=["exact", "compressed"])
def test_a_node_is_killed_for_twenty_rounds(
    lost: bool, options: dict[str, Any]
) -> None:
    strategy, app = Watched(MIXING, evaluate_every=5, **options), App(num_steps=30)
    grid = LoopbackGrid(app.app, NUM_NODES)
    killed = grid.node_ids[2]

    def before(number: int) -> None:
        if number == 6:
            grid.offline.add(killed)
        if number == 26:
            grid.offline.remove(killed)
            if lost:
                grid.forget(killed)

    strategy.before = before
    with logged() as lines:
        result, _ = train(strategy, app, 50, grid)
    restarts = [line for line in lines if "restarts from its public copy" in line]
    assert len(restarts) == (1 if lost else 0)
    metrics = result.evaluate_metrics_clientapp
    assert [metrics[k]["num_nodes"] for k in (5, 10, 25, 30)] == [4, 3, 3, 4]
    # The others went on, along the edges between them.
    trained = result.train_metrics_clientapp
    assert [trained[k]["num_mixed"] for k in (5, 6, 25)] == [4, 2, 2]
    # And it came back to them, once nobody pulls any more.
    assert metrics[30]["consensus_distance"] > 0.05
    assert metrics[50]["consensus_distance"] < 0.05 * metrics[30]["consensus_distance"]
    expected = NUM_NODES * np.ones(DIM) + app.moved
    gap = np.linalg.norm(models(strategy).sum(axis=0) - expected)
    assert (gap < 1e-6 * np.linalg.norm(expected)) == (not lost or not options)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5])
def test_a_step_that_cannot_be_is_refused(gamma: float) -> None:
    with pytest.raises(SettingError, match=r"expected gamma in \(0, 1\]"):
        Consensus(MIXING, compressor="sign()", gamma=gamma)
    with pytest.raises(SettingError, match="and a compressor, found gamma"):
        Consensus(MIXING, gamma=0.5)
    with pytest.raises(SettingError, match="a graph with edges"):
        Gossip(topology.complete(1))


class Away(LoopbackGrid):
    """A grid from which all nodes are away for some time."""

    nobody: float = 0  # how often nobody is found

    def get_node_ids(self) -> list[int]:
        self.nobody -= 1
        return [] if self.nobody >= 0 else list(super().get_node_ids())


def leave_at(number: int, grid: Away, num_looks: float) -> Watched:
    strategy = Watched(MIXING, node_timeout=0.2 if num_looks == np.inf else 60.0)

    def before(round_: int) -> None:
        if round_ == number:
            grid.nobody = num_looks

    strategy.before = before
    return strategy


def test_all_nodes_may_be_away_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "_POLL_SECONDS", 0.01)
    app = App()
    grid = Away(app.app, NUM_NODES)
    strategy = leave_at(3, grid, 20)
    train(strategy, app, 8, grid)
    np.testing.assert_allclose(models(strategy), by_hand(8), rtol=1e-5)


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post, "_POLL_SECONDS", 0.01)
    app = App()
    grid = Away(app.app, NUM_NODES)
    with pytest.raises(
        ProtocolError, match=r"24 requests in a row .* no node answered"
    ):
        train(leave_at(3, grid, np.inf), app, 8, grid)


def test_nodes_without_a_vertex_are_told_of() -> None:
    app = App()
    configs = [{}, {}, {}, {"partition-id": "x"}]
    grid = LoopbackGrid(app.app, NUM_NODES, node_configs=configs)
    with pytest.raises(
        ProtocolError, match=r"none with \[3\], and 1 that are no vertex"
    ):
        train(Consensus(MIXING, node_timeout=0.1), app, 2, grid)


def test_gamma_is_tuned_and_unbiased_compressors_are_shrunk() -> None:
    strategy = Consensus(MIXING, compressor="flat(inner=randk(fraction=0.5))")
    assert strategy.tuned_gamma is None
    train(strategy, App(), 1)
    assert strategy.tuned_gamma in (0.1, 0.2, 0.4, 0.8)
    assert strategy.gamma is None  # another model is tuned anew
    assert strategy.codec() == "flat(inner=shrunk(inner=randk(fraction=0.5)))"


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="Consensus: expected 4 periods"):
        Consensus(MIXING, (1, 2))
    with pytest.raises(SettingError, match="Gossip: expected num_edges"):
        Gossip(CYCLE, 0)
    with pytest.raises(SettingError, match="expected 4 periods, integers"):
        Gossip(CYCLE, train_periods=0)
    with pytest.raises(ProtocolError, match=r"its start\(\) was not called"):
        _ = Gossip(CYCLE).room


def test_missing_nodes_are_named() -> None:
    strategy = Consensus(max_degree(topology.cycle(5)), node_timeout=0.0)
    with pytest.raises(ProtocolError, match=r"partition-id 0 to 4, found none.*\[4\]"):
        train(strategy, App(), 1)


def test_without_the_mod_training_ends_with_advice() -> None:
    for mods in ([], [CompressionMod()]):
        with pytest.raises(ProtocolError, match=r"is ConsensusMod\(\) the first"):
            train(Consensus(MIXING), App(mods=mods), 5)


def test_both_mods_can_stand_in_one_app() -> None:
    for mods in (
        [CompressionMod(), ConsensusMod()],
        [ConsensusMod(), CompressionMod()],
    ):
        strategy = Consensus(MIXING)
        train(strategy, App(mods=mods), 2)
        np.testing.assert_allclose(models(strategy), by_hand(2), rtol=1e-5)


def test_a_hostile_message_costs_its_node_alone() -> None:
    strategy, app = Consensus(MIXING), App()
    grid = LoopbackGrid(app.app, NUM_NODES)
    bad = grid.node_ids[1]

    def spoil(message: Message) -> None:
        if message.metadata.src_node_id == bad and not message.has_error():
            for record in message.content.array_records.values():
                for array in record.values():
                    array.data = array.data[:-3] + b"abc"

    grid.on_reply = spoil
    with logged() as lines:
        result, _ = train(strategy, app, 3, grid)
    assert any("left out vertex 1" in line for line in lines)
    assert result.evaluate_metrics_clientapp[3]["num_nodes"] == 3
    assert result.train_metrics_clientapp[3]["num_mixed"] == 2
    assert strategy.ledger.round(3)["dropped"] >= 1
    assert distance(models(strategy)) > 0

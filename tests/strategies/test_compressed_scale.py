"""Memory in units of the local step, and EF21 with sampled clients.

The problem is that of `federation`, with many clients: heterogeneous quadratics, a few
local steps each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fl_lowrank.envelope import REQUEST_KEY, Request
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from strategies.turns import Book
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    fedavg_by_hand,
    local_steps,
    num_examples,
    quadratic_app,
    train,
)

STEP = 0.3
DROP = 0.01


class Dropping(FedAvg):
    """Lowers the local step 100-fold in a certain round."""

    def __init__(self, drop_at: int) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.drop_at = drop_at

    def lr(self, server_round: int) -> float:
        return STEP if server_round < self.drop_at else STEP * DROP

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = self.lr(server_round)
        return super().configure_train(server_round, arrays, config, grid)


def models(
    inner: Dropping, uplink: str, feedback: str, scale_key: str, num_rounds: int
) -> list[np.ndarray]:
    """Give the model before and after each round."""
    seen: list[np.ndarray] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        del server_round
        seen.append(arrays["w"].numpy().astype(np.float64))

    strategy = Compressed(inner, uplink, feedback, scale_key=scale_key)
    config = ConfigRecord()
    train(strategy, num_rounds=num_rounds, config=config, evaluate_fn=evaluate)
    return seen


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_what_is_remembered_shrinks_with_the_step(feedback: str) -> None:
    """After some rounds of a coarse compressor much of the update is memory."""

    def moves(scale_key: str) -> np.ndarray:
        w = models(Dropping(5), "*: topk(k=2)", feedback, scale_key, 5)
        return np.linalg.norm(np.diff(w, axis=0), axis=1)[-2:]

    first, second = moves("lr")
    assert 0.3 * DROP * first < second < 3.0 * DROP * first
    # Remembered as it is, it enters the model at the size of the large step.
    first, second = moves("no such key")
    assert second > 30.0 * DROP * first


def test_a_drop_of_the_step_keeps_the_error_of_ef21() -> None:
    """Measured: 0.035 before, 0.029 at the end; in units of updates 0.35 at the end."""
    drop_at, num_rounds = 20, 40
    inner = Dropping(drop_at)
    exact = [np.zeros(DIM)]
    weights = [num_examples(i) for i in range(NUM_NODES)]
    for round_ in range(1, num_rounds + 1):
        steps = [local_steps(exact[-1], i, inner.lr(round_)) for i in range(NUM_NODES)]
        exact.append(np.average(steps, axis=0, weights=weights))

    def errors(scale_key: str) -> tuple[float, float]:
        w = models(inner, "*: topk(fraction=0.2)", "ef21", scale_key, num_rounds)
        relative = [
            float(np.linalg.norm(x - y) / np.linalg.norm(y))
            for x, y in zip(w[1:], exact[1:], strict=True)
        ]
        return relative[drop_at - 2], relative[-1]

    before, after = errors("lr")
    before_, after_ = errors("no such key")
    assert before < 0.05
    assert after < 1.2 * before
    assert before_ == pytest.approx(before, rel=1e-3)
    assert after_ > 5.0 * before_


def test_the_scale_is_the_step_that_the_clients_are_told() -> None:
    """Also when the strategy sets it itself, as in `Dropping`."""
    scales: list[float] = []

    def note(message: Message) -> None:
        config = message.content.get("config", {})
        if message.metadata.message_type == "train" and REQUEST_KEY in config:
            scales.append(Request.unpack(config[REQUEST_KEY]).scale)

    class Late(FedAvg):
        def configure_train(
            self,
            server_round: int,
            arrays: ArrayRecord,
            config: ConfigRecord,
            grid: Grid,
        ) -> Iterable[Message]:
            config["lr"] = 0.5**server_round
            return super().configure_train(server_round, arrays, config, grid)

    grid = LoopbackGrid(quadratic_app(), 2)
    grid.on_request = note
    strategy = Compressed(Late(), "identity()")
    train(strategy, grid=grid, num_rounds=3, config=ConfigRecord())
    assert scales == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@pytest.mark.parametrize("lr", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_a_step_that_is_no_number_is_no_scale(lr: object) -> None:
    grid = LoopbackGrid(quadratic_app(), 2)
    scales: list[float] = []

    def note(message: Message) -> None:
        config = message.content.get("config", {})
        if REQUEST_KEY in config:
            scales.append(Request.unpack(config[REQUEST_KEY]).scale)
            config["lr"] = 0.1

    grid.on_request = note
    config = ConfigRecord({"lr": lr})
    train(Compressed(FedAvg(), "identity()"), grid=grid, config=config, num_rounds=1)
    assert scales == [1.0] * 4


def sampled_distances(num_rounds: int = 60) -> list[float]:
    """EF21 with 25% of 20 clients: distances from the optimum, relative."""
    optimum = fedavg_by_hand(300, range(20), lr=0.5)
    distances: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        del server_round
        w = arrays["w"].numpy()
        distances.append(float(np.linalg.norm(w - optimum) / np.linalg.norm(optimum)))

    inner = FedAvg(fraction_train=0.25, fraction_evaluate=0.0)
    train(
        Compressed(inner, "*: topk(fraction=0.3)", "ef21"),
        num_nodes=20,
        num_rounds=num_rounds,
        evaluate_fn=evaluate,
        config=ConfigRecord({"lr": 0.5}),
    )
    return distances


def test_ef21_with_sampled_clients_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: 0.011 in the last rounds; without the factor 0.06, and swinging."""
    distances = sampled_distances()
    assert max(distances) < 1.3
    assert max(distances[-10:]) < 0.03

    with_factor = Book.estimate

    def without_factor(book: Book, name: str) -> Iterator[Tensor]:
        changed = {s.client: s.num_examples for s in book.staged}
        known = {c: m.num_examples for c, m in book.members.items() if m.applied}
        participation = sum(changed.values()) / sum((known | changed).values())
        for part in with_factor(book, name):
            yield part / participation

    monkeypatch.setattr(Book, "estimate", without_factor)
    swinging = sampled_distances()
    assert max(swinging) > max(distances)
    assert np.mean(swinging[-10:]) > 2.0 * np.mean(distances[-10:])

"""A small training on the lossy loopback grid, followed by the oracle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
)
from flwr.serverapp.strategy import FedAdam, FedAvg

import strategies.books
import strategies.directory
from clients import storage
from clients.turns import Memory
from fl_lowrank import feedback as feedbacks
from fl_lowrank.envelope import (
    Reply,
    Ticket,
)
from fl_lowrank.errors import ProtocolError
from simulations.loopback import Faults, LoopbackGrid, RandomFaults
from strategies import Compressed
from strategies.books import MemoryMode
from strategies.node_book import NodeBook
from strategies.turns import Book

from .actors import LOSSY, MODEL, SIZE, Clients
from .laws import check_agreement, check_round, check_step
from .oracle import Oracle, Snapshot
from .shadow import Vector
from .verdict import Violation

#: Local steps, from round to round.
RATES = (0.5, 0.1, 0.7, 0.003)


class LawBrokenError(AssertionError):
    """The oracle has found breaches."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = violations
        super().__init__("\n".join(map(str, violations[:10])))

    @property
    def laws(self) -> set[str]:
        return {v.law for v in self.violations}


@dataclass(frozen=True)
class Scene:
    """Everything that a run depends on."""

    feedback: str
    uplink: str = "topk(fraction=0.2)"
    num_nodes: int = 6
    num_rounds: int = 40
    #: Rounds at the end in which nothing goes wrong and every node takes part.
    num_quiet: int = 4
    inner: str = "fedavg"
    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    faults: Faults = field(default_factory=Faults)
    #: Probability that a reply arrives damaged.
    damage: float = 0.0
    #: Every so many rounds the inner strategy gives no arrays; 0 for never.
    refuse_every: int = 0
    vary: bool = True
    memory: MemoryMode = "sum"
    downlink: str | None = None
    #: The server is killed at the end of these rounds and restarted from a checkpoint
    #: that is so many rounds older.
    restarts: Mapping[int, int] = field(default_factory=dict)
    #: A checkpoint of each round is kept, so that the server may be killed at any time.
    checkpoints: bool = False
    seed: int = 0


class ServerKilled(Exception):
    """Ends a training from within; it goes on from an older checkpoint.

    Parameters
    ----------
    older : int
        By so many rounds older than that of the last round that has ended.
    """

    def __init__(self, older: int = 0) -> None:
        super().__init__(older)
        self.older = older


class Watched(Book):
    """Mixed into a book: what happens is told on to the oracle."""

    oracle: Oracle

    def open(self, client: str) -> tuple[Ticket, int]:
        ticket, applied = super().open(client)
        self.oracle.opened(ticket)
        return ticket, applied

    def claim(self, client: str, reply: Reply) -> None:
        super().claim(client, reply)
        self.oracle.claim(client, reply)

    def commit(self, round_: int) -> None:
        self.oracle.commit(self.staged)
        super().commit(round_)

    def roll_back(self) -> None:
        self.oracle.roll_back()
        super().roll_back()

    def reset(self) -> None:
        self.oracle.reset()
        super().reset()


@dataclass
class Stage:
    """One run: what is on it while it lasts, and what is left afterwards."""

    scene: Scene
    grid: LoopbackGrid
    clients: Clients
    oracle: Oracle
    books: list[Book] = field(default_factory=list)
    #: Compressed arrays after each round; index 0 is before all.
    models: list[Vector] = field(default_factory=list)
    #: Why the server has ended by itself, where checkpoints are kept.
    despairs: list[str] = field(default_factory=list)
    inner: FedAvg | None = None

    @property
    def book(self) -> Book:
        return self.books[-1]

    def memory(self, node: int) -> Memory | None:
        return storage.load(self.grid.contexts[self.grid.node_ids[node]])


def set_up(scene: Scene) -> Stage:
    """Make grid, clients and oracle."""
    clients = Clients(scene.seed, vary=scene.vary, damage=scene.damage)
    grid = LoopbackGrid(clients, scene.num_nodes, faults=scene.faults, seed=scene.seed)
    clients.grid = grid
    return Stage(scene, grid, clients, make_oracle(scene, grid))


def make_oracle(scene: Scene, grid: LoopbackGrid) -> Oracle:
    """Make an oracle for a training about to start."""
    keys = {f"partition-{i}": node for i, node in enumerate(grid.node_ids)}
    feedback = feedbacks.named(scene.feedback)
    per_node = scene.memory == "per-node" and feedback.has_share
    return Oracle(feedback, SIZE, grid.contexts, keys, per_node=per_node)


def bad_weather(seed: int, **changes: float) -> RandomFaults:
    """Everything at once, as on a bad day."""
    usual = {
        "lose_request": 0.15,
        "lose_reply": 0.15,
        "duplicate_request": 0.15,
        "duplicate_reply": 0.15,
        "delay": 0.15,
        "crash_before_save": 0.04,
        "crash_after_reply": 0.04,
        "lose_memory": 0.01,
        "offline": 0.02,
    }
    return RandomFaults(seed, **(usual | changes))


AfterRound = Callable[[Stage, int], None]


def play(
    scene: Scene,
    after_round: AfterRound | None = None,
    stage: Stage | None = None,
    *,
    to_the_end: bool = False,
) -> Stage:
    """Run a whole training; `LawBrokenError` in the first round with a breach."""
    if stage is None:
        stage = set_up(scene)
    else:
        stage.oracle = make_oracle(scene, stage.grid)
    stage.clients.oracle = stage.oracle
    stage.inner = make_inner(scene)
    config = ConfigRecord({"lr": 0.5})
    restarts = dict(scene.restarts)
    keeps = scene.checkpoints or bool(restarts)
    kept: dict[int, tuple[bytes, Snapshot, Vector]] = {}

    def at_round_end(round_: int, arrays: ArrayRecord) -> None:
        model = [arrays[k].numpy().reshape(-1).astype(float) for k in LOSSY]
        stage.models.append(np.concatenate(model))
        if round_:
            check_round(stage.oracle, stage.book)
            if scene.inner == "fedavg":
                before, after = stage.models[-2:]
                check_step(stage.oracle, before, after, float(config["lr"]))
        if scene.vary:
            config["lr"] = RATES[round_ % len(RATES)]
        if keeps:
            snapshot = stage.oracle.checkpoint()
            kept[round_] = (path.read_bytes(), snapshot, stage.models[-1])
        if after_round is not None:
            after_round(stage, round_)
        if round_ in restarts:
            raise ServerKilled(restarts.pop(round_))
        if round_ >= scene.num_rounds - scene.num_quiet:
            calm(stage)
        if stage.oracle.verdict.violations and not to_the_end:
            raise LawBrokenError(stage.oracle.verdict.violations)

    resume = None
    with watched(stage), quiet_log(), TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        while True:
            strategy = Compressed(
                stage.inner,
                scene.uplink,
                scene.feedback,
                linear=True,
                seed=scene.seed,
                checkpoint=path if keeps else None,
                memory=scene.memory,
                downlink=scene.downlink,
            )
            try:
                strategy.start(
                    stage.grid,
                    ArrayRecord({k: Array(v) for k, v in MODEL.items()}),
                    num_rounds=scene.num_rounds,
                    train_config=config,
                    evaluate_fn=at_round_end,
                    resume=resume,
                )
                break
            except ServerKilled as killed:
                older = max(max(kept) - killed.older, 0)
            except ProtocolError as error:
                if not scene.checkpoints:
                    raise
                # Nobody has answered for too long: somebody starts it again.
                stage.despairs.append(str(error))
                older = max(kept)
            data, snapshot, model = kept[older]
            kept = {r: found for r, found in kept.items() if r <= older}
            path.write_bytes(data)
            stage.oracle.restart(snapshot)
            stage.models.append(model)
            stage.inner, resume = make_inner(scene), path
            if scene.vary:
                config["lr"] = RATES[older % len(RATES)]
    if scene.num_quiet:
        check_agreement(stage.oracle, stage.book)
    if stage.oracle.verdict.violations:
        raise LawBrokenError(stage.oracle.verdict.violations)
    return stage


def calm(stage: Stage) -> None:
    """From now on nothing goes wrong, and every node takes part."""
    assert stage.inner is not None
    stage.grid.faults, stage.clients.damage = Faults(), 0.0
    stage.inner.refuse_every = 0
    stage.inner.fraction_train = stage.inner.fraction_evaluate = 1.0


@contextmanager
def watched(stage: Stage) -> Iterator[None]:
    """Let `Compressed` make watched books."""

    class ThisBook(Watched):
        oracle = stage.oracle

        def __init__(self, *fields: Any, **more: Any) -> None:
            super().__init__(*fields, **more)
            stage.books.append(self)

    class ThisNodeBook(ThisBook, NodeBook):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies.books, "Book", ThisBook)
        patch.setattr(strategies.books, "NodeBook", ThisNodeBook)
        # No time passes on the loopback grid, so ask silent nodes again at once.
        patch.setattr(strategies.directory, "RETRY_SECONDS", -1.0)
        yield


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep Flower's thousands of lines per run to the warnings."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class Refusing:
    """Mixed into a strategy: some rounds give no arrays."""

    refuse_every = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if self.refuse_every and server_round % self.refuse_every == 0:
            return None, None
        return super().aggregate_train(server_round, replies)


class RefusingFedAvg(Refusing, FedAvg):
    pass


class RefusingFedAdam(Refusing, FedAdam):
    pass


def make_inner(scene: Scene) -> FedAvg:
    cls = {"fedavg": RefusingFedAvg, "fedadam": RefusingFedAdam}[scene.inner]
    strategy = cls(
        fraction_train=scene.fraction_train,
        fraction_evaluate=scene.fraction_evaluate,
        min_train_nodes=1,
        min_evaluate_nodes=0,
        min_available_nodes=1,
    )
    strategy.refuse_every = scene.refuse_every
    return strategy

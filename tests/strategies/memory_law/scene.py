"""A small training on the lossy loopback grid, followed by the oracle."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
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
from flwr.serverapp.strategy import FedAdam, FedAvg

import strategies.compressed
import strategies.directory
from clients import CompressionMod, storage
from clients.mod import client_key
from clients.turns import Memory
from fl_lowrank import feedback as feedbacks
from fl_lowrank.envelope import (
    HELLO,
    REQUEST_KEY,
    STYPE,
    Reply,
    Request,
    Ticket,
)
from fl_lowrank.feedback import Feedback
from fl_lowrank.model import ModelCodec
from fl_lowrank.updates import split_layout
from fl_lowrank.wire import TensorLayout
from simulations.loopback import EventKind, Faults, LoopbackGrid, RandomFaults
from strategies import Compressed
from strategies.turns import Book

from .oracle import Call, Oracle, Violation, flat
from .shadow import Turn

# Two dtypes on purpose: what is summed in float64 must not share storage with what
# arrives in it.
MODEL = {
    "layer.weight": np.zeros((6, 5), np.float32),
    "layer.bias": np.zeros(7, np.float64),
    "norm.running_mean": np.zeros(4, np.float32),
    "norm.num_batches_tracked": np.zeros((), np.int64),
}
LOSSY, _ = split_layout(
    {k: TensorLayout(v.shape, torch.from_numpy(v).dtype) for k, v in MODEL.items()}
)
SIZE = sum(t.numel for t in LOSSY.values())


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
    seed: int = 0


class Clients:
    """The real ClientApp, and around it what the oracle must see of its doors."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.rng = random.Random(f"clients {scene.seed}")
        self.oracle: Oracle | None = None
        self.grid: LoopbackGrid | None = None
        self.trained: list[tuple[str, int]] = []
        self.current: Memory | None = None
        self._lesson: tuple[np.ndarray, float] | None = None
        self._app = self._make_app()

    def __call__(self, message: Message, context: Context) -> Message:
        assert self.oracle is not None
        assert self.grid is not None
        request = request_of(message)
        client = client_key(context)
        lost_memory = self.grid.events[-1].kind is EventKind.MEMORY_LOST
        self.oracle.begins(client, lost_memory=lost_memory)
        self._lesson = None
        self.current = storage.load(context)
        reply = self._app(message, context)
        if request.purpose == HELLO:
            return reply
        turn = None
        if not reply.has_error() and self._lesson is not None:
            turn = self._turn(client, reply, request)
        self.oracle.handled(Call(client, request, context, reply.has_error(), turn))
        if turn is not None and self.rng.random() < self.scene.damage:
            damage(reply, self.rng)
        return reply

    def _turn(self, client: str, reply: Message, request: Request) -> Turn:
        assert self._lesson is not None
        step, num_examples = self._lesson
        ((_, array),) = reply.content["arrays"].items()
        head = Reply.unpack(array.data)
        sent = flat(ModelCodec.decode(head.lossy, LOSSY), np.zeros(SIZE))
        return Turn(
            client,
            head.ticket,
            head.turn,
            head.base,
            head.lossy,
            num_examples,
            step * (num_examples / request.scale),
            sent,
            np.zeros(SIZE),
        )

    def _make_app(self) -> ClientApp:
        app = ClientApp(mods=[CompressionMod()])

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return self._train(message, context)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            assert REQUEST_KEY not in message.content["config"]
            metrics = MetricRecord({"num-examples": 3, "loss": 1.0})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        return app

    def _train(self, message: Message, context: Context) -> Message:
        """Take a step towards a target of this node's own, never twice the same."""
        config = message.content["config"]
        assert REQUEST_KEY not in config
        node = int(context.node_config["partition-id"])
        self.trained.append((client_key(context), int(config["server-round"])))
        draw = np.random.default_rng((self.scene.seed, node, len(self.trained)))
        before = {k: a.numpy() for k, a in message.content["arrays"].items()}
        after = {}
        for name, x in before.items():
            target = np.cos(node + np.arange(x.size)).reshape(x.shape)
            step = float(config["lr"]) * (target - x + 0.3 * draw.normal(size=x.shape))
            after[name] = (x + step).astype(x.dtype)
        num_examples = 5 + 7 * node
        if self.scene.vary and node % 2:
            num_examples += int(draw.integers(0, 20))
        self._lesson = (
            np.concatenate(
                [(after[k].astype(float) - before[k]).reshape(-1) for k in LOSSY]
            ),
            float(num_examples),
        )
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {k: Array(np.asarray(v)) for k, v in after.items()}
                ),
                "metrics": MetricRecord({"num-examples": num_examples, "loss": 0.5}),
            }
        )
        return Message(content, reply_to=message)


def request_of(message: Message) -> Request:
    """Read the request that a message carries."""
    for record in message.content.config_records.values():
        if REQUEST_KEY in record:
            return Request.unpack(record[REQUEST_KEY])
    raise AssertionError("a message without a request")


def damage(reply: Message, rng: random.Random) -> None:
    """Make a reply unusable, in one of many ways."""
    metrics = reply.content["metrics"]
    ((key, array),) = reply.content["arrays"].items()
    data = bytearray(array.data)
    what = rng.choice(["bit", "cut", "nan", "negative", "missing", "keys", "dense"])
    if what == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del data[rng.randrange(len(data)) :]
    elif what == "nan":
        metrics["num-examples"] = float("nan")
    elif what == "negative":
        metrics["num-examples"] = -5
    elif what == "missing":
        del metrics["num-examples"]
    elif what == "keys":
        metrics["surprise"] = 1.0
    if what == "dense":
        dense = {k: Array(np.asarray(v)) for k, v in MODEL.items()}
        reply.content["arrays"] = ArrayRecord(dense)
    else:
        changed = Array("uint8", (len(data),), STYPE, bytes(data))
        reply.content["arrays"] = ArrayRecord({key: changed})


class WatchedBook(Book):
    """The server's book, told on to the oracle."""

    oracle: Oracle

    def open(self, client: str) -> tuple[Ticket, int]:
        ticket, applied = super().open(client)
        self.oracle.opened(ticket)
        return ticket, applied

    def claim(self, client: str, reply: Reply) -> None:
        super().claim(client, reply)
        self.oracle.claim(client, reply)

    def commit(self) -> None:
        self.oracle.commit(self.staged)
        super().commit()

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
    history: list[dict[str, np.ndarray]] = field(default_factory=list)

    @property
    def book(self) -> Book:
        return self.books[-1]

    def memory(self, node: int) -> Memory:
        memory = storage.load(self.grid.contexts[self.grid.node_ids[node]])
        assert memory is not None
        return memory


def set_up(scene: Scene) -> Stage:
    """Make grid, clients and oracle."""
    clients = Clients(scene)
    grid = LoopbackGrid(clients, scene.num_nodes, faults=scene.faults, seed=scene.seed)
    clients.grid = grid
    return Stage(scene, grid, clients, make_oracle(scene, grid))


def make_oracle(scene: Scene, grid: LoopbackGrid) -> Oracle:
    """Make an oracle for a training about to start."""
    keys = {f"partition-{i}": node for i, node in enumerate(grid.node_ids)}
    return Oracle(feedbacks.named(scene.feedback), SIZE, grid.contexts, keys)


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
    inner = make_inner(scene)
    strategy = Compressed(
        inner, scene.uplink, scene.feedback, linear=True, seed=scene.seed
    )
    config = ConfigRecord({"lr": 0.5})

    def at_round_end(round_: int, arrays: ArrayRecord) -> None:
        stage.history.append({k: a.numpy().copy() for k, a in arrays.items()})
        if round_:
            stage.oracle.check(stage.book)
            if scene.inner == "fedavg":
                before, after = (
                    np.concatenate([h[k].reshape(-1).astype(float) for k in LOSSY])
                    for h in stage.history[-2:]
                )
                stage.oracle.check_step(before, after, float(config["lr"]))
        if after_round is not None:
            after_round(stage, round_)
        if scene.vary:
            config["lr"] = (0.5, 0.1, 0.7, 0.003)[round_ % 4]
        if round_ >= scene.num_rounds - scene.num_quiet:
            stage.grid.faults, stage.clients.scene = Faults(), Scene(scene.feedback)
            inner.refuse_every = 0
            inner.fraction_train = inner.fraction_evaluate = 1.0
        if stage.oracle.violations and not to_the_end:
            raise LawBrokenError(stage.oracle.violations)

    with watched(stage), quiet_log():
        strategy.start(
            stage.grid,
            ArrayRecord({k: Array(v) for k, v in MODEL.items()}),
            num_rounds=scene.num_rounds,
            train_config=config,
            evaluate_fn=at_round_end,
        )
    if scene.num_quiet:
        stage.oracle.check_quiescence(stage.book)
    if stage.oracle.violations:
        raise LawBrokenError(stage.oracle.violations)
    return stage


@contextmanager
def watched(stage: Stage) -> Iterator[None]:
    """Let `Compressed` make watched books."""

    def make(feedback: Feedback) -> Book:
        book = WatchedBook(feedback)
        book.oracle = stage.oracle
        stage.books.append(book)
        return book

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies.compressed, "Book", make)
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

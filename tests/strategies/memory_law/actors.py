"""The clients of a scene: the real ClientApp, and what is seen at its doors."""

from __future__ import annotations

import random

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import CompressionMod, storage
from clients.homes import client_key
from clients.turns import Memory
from fl_lowrank.envelope import HELLO, REQUEST_KEY, STYPE, Reply, Request
from fl_lowrank.model import ModelCodec
from fl_lowrank.updates import split_layout
from fl_lowrank.wire import TensorLayout
from simulations.loopback import EventKind, LoopbackGrid

from .oracle import Call, Oracle
from .shadow import Turn
from .verdict import flat

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
#: Says that the client cannot follow a compressed model.
MODEL_REFUSED = "the next time"


class Clients:
    """The real ClientApp, and around it what the oracle must see of its doors.

    Parameters
    ----------
    seed : int
        Of the steps, and of what is damaged.
    vary : bool
        Half of the nodes have another number of examples in each round.
    damage : float
        Probability that a reply arrives damaged.

    Attributes
    ----------
    trained : list of client and round
        In the order of the trainings.
    current : Memory, optional
        With which the client called last has begun.
    """

    def __init__(self, seed: int, *, vary: bool, damage: float) -> None:
        self.seed = seed
        self.vary = vary
        self.damage = damage
        self.rng = random.Random(f"clients {seed}")
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
        if reply.has_error() and MODEL_REFUSED in reply.error.reason:
            return reply  # before it has looked at its memory
        turn = None
        if not reply.has_error() and self._lesson is not None:
            turn = self._turn(client, reply, request)
        self.oracle.handled(Call(client, request, context, reply.has_error(), turn))
        if turn is not None and self.rng.random() < self.damage:
            damage(reply, self.rng.choice(DAMAGES), self.rng)
        return reply

    def _turn(self, client: str, reply: Message, request: Request) -> Turn:
        assert self._lesson is not None
        assert self.oracle is not None
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
            self.oracle.move(sent),
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
        draw = np.random.default_rng((self.seed, node, len(self.trained)))
        before = {k: a.numpy() for k, a in message.content["arrays"].items()}
        after = {}
        for name, x in before.items():
            target = np.cos(node + np.arange(x.size)).reshape(x.shape)
            step = float(config["lr"]) * (target - x + 0.3 * draw.normal(size=x.shape))
            after[name] = (x + step).astype(x.dtype)
        num_examples = 5 + 7 * node
        if self.vary and node % 2:
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


DAMAGES = ("bit", "cut", "nan", "negative", "missing", "keys", "dense")


def damage(reply: Message, what: str, rng: random.Random) -> None:
    """Make a reply unusable."""
    metrics = reply.content["metrics"]
    ((key, array),) = reply.content["arrays"].items()
    data = bytearray(array.data)
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

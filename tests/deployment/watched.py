"""The project's ClientApp between two mods that watch it, as the tests deploy it.

What the client has produced is written to a folder of the node's: the request, the
reply's bytes and, dense in float64, the update before any compression. At two places
the client waits as long as the test wants it to, so that it can be killed there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients import CompressionMod
from fl_lowrank.envelope import REQUEST_KEY, TRAIN, Request
from simulations.client_app import evaluate_locally, local_gradient, train


class Watch:
    """Two mods, of which the inner one sees the update and the outer one the bytes."""

    def __init__(self) -> None:
        self.change = np.zeros(0)

    def inside(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        received = _flat(message)
        reply = call_next(message, context)
        if not reply.has_error() and reply.content.array_records:
            self.change = _flat(reply) - received
        _wait_at("trained")
        return reply

    def outside(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        config = next(iter(message.content.config_records.values()))
        data = config[REQUEST_KEY]
        assert isinstance(data, bytes)
        request = Request.unpack(data)
        round_ = config.get("server-round", 0)
        reply = call_next(message, context)
        if request.purpose == TRAIN and not reply.has_error():
            (metrics,) = reply.content.metric_records.values()
            (array,) = reply.content.array_records["arrays"].values()
            ticket = "-".join(f"{number:020}" for number in request.ticket)
            path = _folder() / f"{ticket}.npz"
            with path.with_suffix(".new").open("wb") as file:
                np.savez(
                    file,
                    request=np.frombuffer(data, np.uint8),
                    reply=np.frombuffer(array.data, np.uint8),
                    change=self.change,
                    num_examples=np.float64(metrics["num-examples"]),
                    round=np.int64(round_),
                )
            path.with_suffix(".new").replace(path)
            _wait_at("saved")
        return reply


def _folder() -> Path:
    return Path(os.environ["FL_LOWRANK_WATCH"])


def _flat(message: Message) -> np.ndarray:
    (record,) = message.content.array_records.values()
    assert isinstance(record, ArrayRecord)
    return np.concatenate(
        [a.numpy().reshape(-1).astype(float) for a in record.values()]
    )


def _wait_at(place: str) -> None:
    path = _folder() / place
    if path.exists():
        path.with_suffix(".reached").touch()
    while path.exists():
        time.sleep(0.05)


watch = Watch()
app = ClientApp(
    mods=[watch.outside, CompressionMod(gradient=local_gradient), watch.inside]
)
app.train()(train)
app.evaluate()(evaluate_locally)

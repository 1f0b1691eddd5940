"""The memory law, from what a deployed federation has left in files.

Written down without the code that it checks: what clients have produced comes from the
records of `watched`, what they remember from the files of their memories, and what the
server has from its checkpoint. With error feedback, what a client has produced is what
the server has applied and what the memory holds; with EF21 the memory is the sum of
what was applied, and the server's sum is that of all memories. In both cases the model
has moved by the means of what was applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.homes.file import FileSlot
from fl_lowrank.envelope import Reply, Request
from fl_lowrank.model import Layout, ModelCodec, layout_of
from simulations.config import Settings, default_run_config
from simulations.data import load_dataset
from simulations.models import build_model
from strategies.packing import unpack
from strategies.replies import tensors_of
from tests.deployment.federation import Federation
from tests.strategies.memory_law.verdict import TOLERANCE, flat

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Turn:
    """One training that a client has brought to its end."""

    round: int
    request: Request
    reply: Reply
    num_examples: float
    produced: Vector
    sent: Vector


class Left:
    """What a federation has left behind.

    Attributes
    ----------
    turns : dict
        By client key, in the order of tickets.
    applied : dict
        By client key, the turns that the server has applied.
    members : dict
        By client key, the last applied turn as the checkpoint has it.
    """

    def __init__(self, federation: Federation) -> None:
        self.state: dict[str, Any] = unpack(federation.checkpoint.read_bytes())
        arrays = tensors_of(self.state["progress"]["arrays"])
        self.layout: Layout = layout_of(arrays)
        self.model = flat(arrays, np.zeros(0))
        self.has_error = self.state["feedback"] == "ef"
        self.fid = bytes.fromhex(self.state["book"]["fid"])
        self.members = {c: m[0] for c, m in self.state["book"]["members"].items()}
        self.config = federation.config
        nodes = federation.nodes
        self.turns = {n.key: self._turns(n.records_folder) for n in nodes}
        self.memories = {n.key: self._memory(n.key, n.memory_folder) for n in nodes}
        self.applied: dict[str, list[Turn]] = {}
        for key, turns in self.turns.items():
            told = {t.request.applied for t in turns} | {self.members.get(key, 0)}
            self.applied[key] = [t for t in turns if t.reply.turn in told]

    def _turns(self, folder: Path) -> list[Turn]:
        turns = []
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as record:
                request = Request.unpack(record["request"].tobytes())
                reply = Reply.unpack(record["reply"].tobytes())
                weight = float(record["num_examples"])
                turn = Turn(
                    int(record["round"]),
                    request,
                    reply,
                    weight,
                    record["change"] * weight / request.scale,
                    self._decoded(reply.lossy),
                )
            turns.append(turn)
        return turns

    def _decoded(self, payload: bytes) -> Vector:
        return flat(ModelCodec.decode(payload, self.layout), np.zeros(0))

    def _memory(self, key: str, folder: Path) -> Vector:
        """Give what a client's file holds, settled as its next request would do it."""
        path = folder / f"{key}.memory" / f"{self.fid.hex()}.full"
        slot = FileSlot(path, key, self.fid, durable=True)
        slot.load()
        assert slot.memory is not None, f"{key} has no memory in {path}"
        found = flat(slot.memory.tensors, np.zeros_like(self.model))
        pending = slot.memory.pending
        if pending is not None and pending[0] == self.members[key]:
            sign = -1.0 if self.has_error else 1.0
            found = found + sign * self._decoded(pending[1])
        return found

    @property
    def total(self) -> Vector:
        """The server's sum of memories."""
        return flat(self.state["book"]["total"], np.zeros_like(self.model))


def check(left: Left) -> None:
    """Raise `AssertionError` unless the law holds for every client and the server."""
    initial = _initial_model(left.config)
    total = np.zeros_like(initial)
    for key, memory in left.memories.items():
        produced = _sum([t.produced for t in left.turns[key]], initial)
        applied = _sum([t.sent for t in left.applied[key]], initial)
        assert np.abs(applied).max() > 0, f"nothing of {key} was ever applied"
        wanted = produced - applied if left.has_error else applied
        _assert_close(memory, wanted, f"the memory of {key}")
        total += memory
    if not left.has_error:
        _assert_close(left.total, total, "the server's sum of memories")
    steps = _error_steps(left) if left.has_error else _shared_steps(left)
    _assert_close(left.model, initial + _sum(steps, initial), "the server's model")


def _initial_model(config: Mapping[str, Any]) -> Vector:
    settings = Settings.from_run_config(default_run_config() | dict(config))
    data = load_dataset(settings.dataset, settings.train_samples)
    model = build_model(
        settings.model, data.sample_shape, data.num_classes, settings.seed
    )
    return flat(model.state_dict(), np.zeros(0))


def _by_round(left: Left) -> list[dict[str, Turn]]:
    rounds: dict[int, dict[str, Turn]] = {}
    for key, turns in left.applied.items():
        for turn in turns:
            rounds.setdefault(turn.round, {})[key] = turn
    return [rounds[number] for number in sorted(rounds)]


def _error_steps(left: Left) -> list[Vector]:
    """Each round moves the model by the weighted mean of what has arrived."""
    steps = []
    for turns in _by_round(left):
        weight = sum(t.num_examples for t in turns.values())
        scale = next(iter(turns.values())).request.scale
        steps.append(scale / weight * sum(t.sent for t in turns.values()))
    return steps


def _shared_steps(left: Left) -> list[Vector]:
    """Each round moves it by the mean memory, damped by who took part."""
    steps: list[Vector] = []
    shares = np.zeros_like(left.model)
    weights: dict[str, float] = {}
    for turns in _by_round(left):
        arrived = sum(t.num_examples for t in turns.values())
        scale = next(iter(turns.values())).request.scale
        shares = shares + sum(t.sent for t in turns.values())
        weights |= {key: t.num_examples for key, t in turns.items()}
        members = sum(weights.values())
        steps.append(scale * (arrived / members) * shares / members)
    return steps


def _sum(vectors: Sequence[Vector], like: Vector) -> Vector:
    return sum(vectors, np.zeros_like(like))


def _assert_close(found: Vector, wanted: Vector, what: str) -> None:
    scale = max(np.abs(wanted).max(), np.abs(found).max())
    off = np.abs(found - wanted).max() / scale
    assert off < TOLERANCE, f"{what} is off by {off:.2g}"

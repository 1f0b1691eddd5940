"""The law of the two memories for memories in files.

Nothing is in the Contexts. Processes are killed while they save, and files are deleted,
cut and damaged; the network is as bad as in ``test_memory_law.py``. The Contexts'
crashes are left out: a file is saved whatever becomes of the Context.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from flwr.app import Context, Message

from clients import FileHome, storage
from clients.homes import client_key, disk
from clients.homes.choice import VARIABLE
from clients.homes.file import FileSlot
from clients.turns import Memory
from simulations.loopback import EventKind, LoopbackGrid
from tests.strategies.memory_law.actors import Clients
from tests.strategies.memory_law.scene import (
    Scene,
    Stage,
    bad_weather,
    make_oracle,
    play,
)

LOSSES = ("deleted", "cut", "flipped", "emptied")


class KilledError(Exception):
    """The client's process is gone; Flower reports an error for it."""


class OnDisk(Clients):
    """Clients whose home is chosen by the environment."""

    def __init__(self, scene: Scene, home: FileHome) -> None:
        super().__init__(scene.seed, vary=scene.vary, damage=scene.damage)
        self.home = home
        self.happened: Counter[str] = Counter()

    def __call__(self, message: Message, context: Context) -> Message:
        assert not context.state
        assert self.grid is not None
        if self.grid.events[-1].kind is EventKind.MEMORY_LOST:
            for path in self.files(context):
                self.lose(path)
        reply = super().__call__(message, context)
        assert not context.state
        return reply

    def files(self, context: Context) -> list[Path]:
        return list(self.home.path(context, bytes(16)).parent.glob("*.full"))

    def lose(self, path: Path) -> None:
        what = self.rng.choice(LOSSES)
        self.happened[what] += 1
        data = bytearray(path.read_bytes())
        if what == "deleted":
            path.unlink()
            return
        if what == "cut":
            del data[self.rng.randrange(len(data)) :]
        elif what == "flipped":
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        else:
            data.clear()
        path.write_bytes(data)

    def load(self, context: Context) -> Memory | None:
        """Give what is saved; trainings have clients' folders of their own here."""
        files = self.files(context)
        if not files:
            return None
        (path,) = files
        fid = bytes.fromhex(path.stem)
        slot = FileSlot(path, client_key(context), fid, durable=False)
        slot.load()
        return slot.memory


def is_quiet(stage: Stage) -> bool:
    """Whether the rounds at the end have begun, in which nothing goes wrong."""
    return len(stage.models) > stage.scene.num_rounds - stage.scene.num_quiet


@pytest.mark.parametrize(("feedback", "seed"), [("ef", 0), ("ef21", 1)])
def test_memories_in_files_agree_in_bad_weather(
    feedback: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = bad_weather(
        seed, crash_before_save=0.0, crash_after_reply=0.0, lose_memory=0.04
    )
    scene = Scene(
        feedback, faults=faults, num_rounds=35, damage=0.03, refuse_every=9, seed=seed
    )
    clients = OnDisk(scene, FileHome(tmp_path))
    grid = LoopbackGrid(clients, scene.num_nodes, faults=faults, seed=seed)
    clients.grid = grid
    stage = Stage(scene, grid, clients, make_oracle(scene, grid))
    rng = random.Random(f"kills {seed}")
    replace = disk.Path.replace

    def killing(self: Path, target: Path) -> Path:
        if rng.random() < 0.05 and not is_quiet(stage):
            clients.happened["killed"] += 1
            raise KilledError
        return replace(self, target)

    monkeypatch.setattr(disk.Path, "replace", killing)
    monkeypatch.setattr(storage, "load", clients.load)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    play(scene, stage=stage)
    print(len(grid.events), dict(clients.happened), dict(stage.oracle.events))
    assert len(list(tmp_path.glob("*.memory/*.full"))) == scene.num_nodes
    assert set(clients.happened) == {*LOSSES, "killed"}
    assert stage.oracle.events["applied"] > 40
    causes = ["gave up, lost", "gave up, stale"] if feedback == "ef" else ["reset"]
    for event in ["refused", "rolled back", *causes]:
        assert stage.oracle.events[event] > 0, event

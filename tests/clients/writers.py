"""Processes that write memories, some of them killed; run as a program.

Prints, as JSON, what was found in the files afterwards.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clients import FileHome
from clients.turns import Memory
from tests.clients.memories import FID, context

NUM_PROCESSES = 3
NUM_STEPS = 20
NUM_KILLS = 12
SIZE = 100_000


def step(home: FileHome) -> None:
    """Count one further; all numbers of a memory are its count."""
    with home.open(context(), FID) as slot:
        count = 0 if slot.memory is None else slot.memory.base
        tensors = {"w": torch.full((SIZE,), float(count + 1))}
        slot.save(Memory(FID, "ef", base=count + 1, tensors=tensors))


def found(home: FileHome) -> tuple[int, bool]:
    """Give the count, and whether all numbers agree with it."""
    with home.open(context(), FID) as slot:
        memory = slot.memory
    if memory is None:
        return 0, False
    return memory.base, bool((memory.tensors["w"] == memory.base).all())


def fork(act: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            act()
        finally:
            os._exit(0)
    return pid


def count_together(folder: Path) -> tuple[int, bool]:
    home = FileHome(folder)

    def count() -> None:
        for _ in range(NUM_STEPS):
            step(home)

    for pid in [fork(count) for _ in range(NUM_PROCESSES)]:
        os.waitpid(pid, 0)
    return found(home)


def count_until_killed(folder: Path) -> list[tuple[int, bool]]:
    home = FileHome(folder, durable=False)

    def count() -> None:
        while True:
            step(home)

    step(home)
    rng = random.Random(3)
    after = []
    for _ in range(NUM_KILLS):
        pid = fork(count)
        time.sleep(0.05 + 0.05 * rng.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        after.append(found(home))
    return after


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {
        "together": count_together(folder / "together"),
        "killed": count_until_killed(folder / "killed"),
    }
    print(json.dumps(results))

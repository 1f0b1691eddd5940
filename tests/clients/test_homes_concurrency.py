"""Several requests of one client at once, in threads and in processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from flwr.app import Context, Message

from clients import CompressionMod, FileHome
from clients.turns import Memory
from tests.clients.memories import FULL, assert_same
from tests.clients.test_mod import FID, Client, message, reply_in, request
from tests.clients.writers import NUM_KILLS, NUM_PROCESSES, NUM_STEPS

ROOT = Path(__file__).resolve().parents[2]


def test_processes_take_turns_and_may_be_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.writers", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    # Nothing that one has counted is lost to another one.
    assert results["together"] == [NUM_PROCESSES * NUM_STEPS, True]
    counts = [count for count, _ in results["killed"]]
    assert all(whole for _, whole in results["killed"])
    assert len(counts) == NUM_KILLS
    assert all(a <= b for a, b in pairwise(counts))
    assert counts[-1] > counts[0]


class Race:
    """Requests served in threads, each of which trains until it is told to end."""

    def __init__(self, folder: Path) -> None:
        self.mod = CompressionMod(memory=FileHome(folder))
        self.client = Client()
        self.answers: dict[str, Message] = {}
        self._in_training: dict[str, threading.Event] = {}
        self._may_end: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    @property
    def memory(self) -> Memory | None:
        assert isinstance(self.mod.memory, FileHome)
        with self.mod.memory.open(self.client.context, FID) as slot:
            return slot.memory

    def begin(self, name: str, **changes: object) -> None:
        """Serve a request until it trains."""
        asked = message(request(codec="*: topk(k=4)", **changes).pack())
        self._in_training[name] = threading.Event()
        self._may_end[name] = threading.Event()

        def train(received: Message, context: Context) -> Message:
            self._in_training[name].set()
            assert self._may_end[name].wait(30)
            return self.client.app(received, context)

        def serve() -> None:
            self.answers[name] = self.mod(asked, self.client.context, train)

        self._threads[name] = threading.Thread(target=serve)
        self._threads[name].start()
        assert self._in_training[name].wait(30)

    def end(self, name: str) -> Message:
        """Let a training end, and give the answer."""
        self._may_end[name].set()
        self._threads[name].join(30)
        return self.answers[name]


@pytest.fixture
def race(tmp_path: Path) -> Race:
    return Race(tmp_path)


def refused(answer: Message) -> bool:
    return answer.has_error() and bool(re.search("is not newer", answer.error.reason))


def test_of_two_copies_of_a_request_one_takes_a_turn(race: Race) -> None:
    race.begin("first")
    race.begin("second")  # it has passed the check of tickets as well
    reply = reply_in(race.end("second"))
    assert refused(race.end("first"))
    memory = race.memory
    assert memory is not None
    assert memory.pending == (reply.turn, reply.lossy)
    assert len(race.client.saw) == 2


def test_the_newer_request_need_not_wait_for_the_older_one(race: Race) -> None:
    race.begin("old", ticket=(1, 1))
    race.begin("new", ticket=(1, 2))
    reply = reply_in(race.end("new"))
    assert refused(race.end("old"))
    memory = race.memory
    assert memory is not None
    assert (memory.pending, memory.seen) == ((reply.turn, reply.lossy), (1, 2))


def test_the_newer_request_settles_what_the_older_one_took_meanwhile(
    race: Race,
) -> None:
    race.begin("first", ticket=(1, 1))
    first = reply_in(race.end("first"))
    race.begin("old", ticket=(1, 2), applied=first.turn)
    race.begin("new", ticket=(1, 3), applied=first.turn)
    old = reply_in(race.end("old"))
    new = reply_in(race.end("new"))
    assert (old.base, new.base) == (first.turn, first.turn)
    memory = race.memory
    assert memory is not None
    assert memory.pending == (new.turn, new.lossy)
    # The old turn's update was not applied, so it is still in the error.
    assert memory.unsettled == 1


def test_a_memory_in_other_hands_is_an_error_and_no_deadlock(
    tmp_path: Path, race: Race
) -> None:
    home = FileHome(tmp_path, patience=0.1)
    race.mod.memory = home
    race.begin("late")
    with home.open(race.client.context, FID) as slot:
        answer = race.end("late")
        assert answer.has_error()
        assert re.search(r"has held .*lock for 0.1 s", answer.error.reason)
        assert slot.memory is None
        slot.save(FULL)
    assert_same(race.memory, FULL)


def test_readers_of_the_state_wait_for_nobody(tmp_path: Path, race: Race) -> None:
    home = FileHome(tmp_path, patience=0.0)
    with home.open(race.client.context, FID) as slot:
        slot.save(FULL)
        state = home.peek(race.client.context, FID)
        assert state is not None
        assert state.seen == FULL.seen


def test_a_lock_ends_with_an_error(tmp_path: Path) -> None:
    home = FileHome(tmp_path, patience=0.0)
    here = Client().context

    for _ in range(2):
        with pytest.raises(RuntimeError), home.open(here, FID):
            raise RuntimeError

"""Start ``python -m simulations`` as a user does, and look for what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from simulations.decentralised.arguments import from_text
from simulations.decentralised.driver import Training
from simulations.results import Round, RunFolder
from simulations.runner.superlink import CONNECTION, LocalSuperLink

REPOSITORY = Path(__file__).resolve().parents[2]
_MARK = "FL_LOWRANK_TEST_MARK"
#: Metrics of a decentralised run that depend on the order of sums, and so on threads.
ROUNDED = {"loss", "consensus_distance"}


@dataclass(frozen=True)
class Ended:
    """How a run ended; its processes carry a mark in their environment."""

    exit_code: int
    stdout: str
    stderr: str
    mark: str

    def processes_left(self) -> list[str]:
        """Wait a moment for the last ones, then name those that are still there."""
        for _ in range(20):
            left = [" ".join(p.cmdline()) for p in marked(self.mark)]
            if not left:
                break
            time.sleep(0.1)
        return left


class Started:
    """A run that goes on."""

    def __init__(
        self, folder: Path, *arguments: str, environment: Mapping[str, str] | None
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulations", *arguments],
            cwd=folder,
            env=os.environ
            | {_MARK: self.mark, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
            | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A background shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait(self, timeout_seconds: float = 400) -> Ended:
        """Wait for the end."""
        try:
            stdout, stderr = self.process.communicate(timeout=timeout_seconds)
        except BaseException:
            for process in marked(self.mark):
                process.kill()
            raise
        return Ended(self.process.returncode, stdout, stderr, self.mark)

    def wait_for(self, path: Path, timeout_seconds: float = 200) -> None:
        """Wait until a file has content."""
        deadline = time.monotonic() + timeout_seconds
        while not (path.exists() and path.stat().st_size):
            if self.process.poll() is not None or time.monotonic() > deadline:
                ended = self.wait(30)
                raise AssertionError(f"no {path}: {ended}")
            time.sleep(0.2)

    def find(self, word: str) -> psutil.Process:
        """Find the one process with a word in its command line."""
        (found,) = [p for p in marked(self.mark) if word in " ".join(p.cmdline())]
        return found


def run(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run to the end, in a folder of the user's."""
    return Started(folder, *arguments, environment=environment).wait()


def marked(mark: str) -> list[psutil.Process]:
    """Find processes by the mark that a test gave, zombies aside."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get(_MARK) == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def decentralised_in_process(text: str) -> Training:
    """Do what ``python -m simulations.decentralised`` would, to the last step."""
    training = Training(from_text(text, ""))
    for _ in range(training.total_steps):
        training.step()
    return training


def decentralised_on_ray(
    link: LocalSuperLink, text: str, num_agents: int, folder: Path
) -> list[Round]:
    """Run what ``python -m simulations.decentralised`` would, through ``flwr run``."""
    process = link.start_flwr(
        *("run", str(REPOSITORY), CONNECTION, "--stream", "--federation-config"),
        f"num-supernodes={num_agents} client-resources-num-cpus=1",
        "--run-config",
        f"decentralised={json.dumps(text)} out={json.dumps(str(folder / 'out'))}",
        log_path=folder / "log.txt",
    )
    assert process.wait() == 0
    log = (folder / "log.txt").read_text()
    assert link.last_run()["status"] == "finished:completed", log
    return RunFolder(folder / "out").read_rounds()

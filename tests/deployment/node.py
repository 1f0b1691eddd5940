"""One SuperNode with all that belongs to it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from simulations.runner.local import command, free_port
from simulations.runner.superlink import LocalSuperLink
from tests.deployment.relay import Relay

#: Everything that is waited for comes within this time, on a busy machine too.
PATIENCE_SECONDS = 600.0
#: A SuperNode that has ended is started again after so long.
RESTART_SECONDS = 5
_LOOP = 'while true; do "$@"; sleep "$PAUSE"; done'


class Node:
    """One supervised SuperNode, behind a relay, with folders of its own."""

    def __init__(
        self,
        link: LocalSuperLink,
        folder: Path,
        *,
        partition: int,
        num_partitions: int,
        options: Sequence[str],
    ) -> None:
        self.key = f"partition-{partition}"
        self.memory_folder = folder / "memory"
        self.records_folder = folder / "records"
        self.log_path = folder / "log.txt"
        self.relay = Relay(link.port)
        self.records_folder.mkdir(parents=True)
        (folder / "home").mkdir()
        self._folder = link.neutral_folder
        self._command = [
            *("sh", "-c", _LOOP, "loop", command("flower-supernode"), *options),
            *("--superlink", f"127.0.0.1:{self.relay.port}"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            "--node-config",
            f"partition-id={partition} num-partitions={num_partitions} "
            f'fl-lowrank-memory-dir="{self.memory_folder}"',
        ]
        self._environment = link.environment() | {
            "FLWR_HOME": str(folder / "home"),
            "FL_LOWRANK_WATCH": str(self.records_folder),
            "OMP_NUM_THREADS": "1",
            "PAUSE": str(RESTART_SECONDS),
        }
        self._loop: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and all that keeps it alive."""
        with self.log_path.open("ab") as log:
            self._loop = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_connected(self, times: int = 1) -> None:
        """Wait until it has joined the federation for the n-th time."""
        wait_for(lambda: len(self.ids()) >= times, f"{self.key} has connected")

    def ids(self) -> list[str]:
        """Give the node ids that it has had."""
        if not self.log_path.exists():
            return []
        return re.findall(r"SuperNode ID: (\d+)", self.log_path.read_text("utf-8"))

    def stop_at(self, place: str) -> None:
        """Let the client wait when it comes to a place."""
        (self.records_folder / place).touch()

    def wait_until_at(self, place: str) -> None:
        """Wait until the client waits at a place."""
        path = self.records_folder / f"{place}.reached"
        wait_for(path.exists, f"{self.key} is at {place!r}")

    def go_on(self) -> None:
        """Let the client wait nowhere any more."""
        for path in self.records_folder.glob("*.reached"):
            path.with_suffix("").unlink()
            path.unlink()

    def kill(self, *, for_good: bool) -> None:
        """Kill the SuperNode and all that it has started, and maybe its supervisor."""
        assert self._loop is not None
        loop = psutil.Process(self._loop.pid)
        processes = loop.children(recursive=True)
        if for_good:
            loop.kill()
            self._loop.wait()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
        self.go_on()

    def stop(self) -> None:
        """Reap the supervisor, once all processes are stopped."""
        if self._loop is not None:
            self._loop.wait()


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)

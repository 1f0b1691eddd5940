"""A federation of real processes on the loopback: one SuperLink, several SuperNodes."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from simulations.results import RunFolder
from simulations.runner.flower import to_toml
from simulations.runner.local import command, free_port
from simulations.runner.superlink import CONNECTION, LocalSuperLink
from tests.deployment.relay import Relay

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("clients", "fl_lowrank", "simulations", "strategies")
#: Everything that is waited for comes within this time, on a busy machine too.
PATIENCE_SECONDS = 600.0
#: A SuperNode that has ended is started again after so long.
RESTART_SECONDS = 5
_LOOP = 'while true; do "$@"; sleep "$PAUSE"; done'


def make_app(folder: Path) -> Path:
    """Copy the project as an app whose clients are watched."""
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    shutil.copy(Path(__file__).with_name("watched.py"), folder / "watched.py")
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    text = text.replace('"simulations.client_app:app"', '"watched:app"')
    text = text.replace("fab-include = [", 'fab-include = [\n    "watched.py",')
    (folder / "pyproject.toml").write_text(text, "utf-8")
    return folder


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


class Federation:
    """The processes, and the one run that they serve."""

    def __init__(
        self,
        folder: Path,
        num_nodes: int,
        *,
        link_options: Sequence[str] = ("--insecure",),
        trust: str = "insecure = true",
        node_options: Callable[[int], Sequence[str]] = lambda _: ("--insecure",),
        before: Sequence[Sequence[str]] = (),
    ) -> None:
        self.folder = folder
        self.results = RunFolder(folder / "run")
        self.checkpoint = folder / "checkpoint"
        self.log_path = folder / "flwr-run.txt"
        self.link = LocalSuperLink(
            folder / "superlink.txt", options=link_options, trust=trust
        )
        self.nodes: list[Node] = []
        self.config: Mapping[str, Any] = {}
        self._num_nodes = num_nodes
        self._node_options = node_options
        self._before = before
        self._run: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Federation:
        with ExitStack() as stack:
            # Closed after all processes have been stopped.
            relays = stack.enter_context(ExitStack())
            stack.enter_context(self.link)
            for i in range(self._num_nodes):
                node = Node(
                    self.link,
                    self.folder / f"node-{i}",
                    partition=i,
                    num_partitions=self._num_nodes,
                    options=self._node_options(i),
                )
                relays.enter_context(node.relay)
                self.nodes.append(node)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for node in self.nodes:
            node.stop()
        if self._run is not None:
            self._run.wait()

    def start_nodes(self) -> None:
        """Start all SuperNodes and wait until they are connected."""
        for arguments in self._before:
            self._flwr(*arguments)
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_connected()

    def start_run(self, app: Path, config: Mapping[str, Any]) -> None:
        """Submit the app."""
        assert self.results.path is not None
        self.config = config
        places = {"out": str(self.results.path), "checkpoint": str(self.checkpoint)}
        self._run = self.link.start_flwr(
            *("run", str(app), CONNECTION, "--stream"),
            *("--run-config", to_toml({**config, **places})),
            log_path=self.log_path,
        )

    def wait_for_round(self, number: int) -> None:
        """Wait until a round has ended."""

        def ended() -> bool:
            assert self._run is not None
            assert self._run.poll() is None, self.said()
            return len(self.results.read_rounds()) > number

        wait_for(ended, f"round {number} has ended")

    def wait_for_end(self) -> str:
        """Wait until the run has ended, and tell how."""
        assert self._run is not None
        self._run.wait(PATIENCE_SECONDS)
        return str(self.link.last_run()["status"])

    def _flwr(self, *arguments: str) -> None:
        """Let ``flwr`` do something that must succeed."""
        done = self.link.start_flwr(*arguments, log_path=self.log_path)
        assert done.wait(PATIENCE_SECONDS) == 0, self.log_path.read_text("utf-8")

    def said(self) -> str:
        """Give what ``flwr run`` has printed."""
        return self.log_path.read_text("utf-8")


def wait_for(done: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)

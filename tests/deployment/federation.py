"""A federation of real processes on the loopback: one SuperLink, several SuperNodes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from simulations.results import RunFolder
from simulations.runner.flower import to_toml
from simulations.runner.superlink import CONNECTION, LocalSuperLink
from tests.deployment.node import PATIENCE_SECONDS, Node, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("clients", "fl_lowrank", "simulations", "strategies")


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

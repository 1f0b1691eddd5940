"""A SuperLink of our own: private home, free port, neutral folder, nothing left.

By default it simulates; with other options it serves SuperNodes.

The managed one that ``flwr run`` starts by itself keeps a fixed port, outlives the
run, is reused by other checkouts with its old environment, and installs the newest
dependencies for each run. Ray workers import from its working folder before the
app's own code, hence the empty folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import SimulationError
from .local import answers, command, free_port
from .processes import MARK, stop_marked_processes

CONNECTION = "fl-lowrank-local"
SIMULATION = ("--insecure", "--simulation")
_START_SECONDS = 120.0
_POLL_SECONDS = 0.1
# A Unix socket's path has room for about 100 characters, most of them Ray's.
_LONGEST_RAY_FOLDER = 40


class LocalSuperLink:
    """A SuperLink, as a context manager; all that carries its mark ends with it.

    Parameters
    ----------
    log_path : Path
        Where its output goes, Ray's included.
    options : Sequence[str]
        Of ``flower-superlink``; by default for Flower's simulation runtime.
    trust : str
        Line of Flower's config.toml by which ``flwr`` trusts it.
    """

    def __init__(
        self,
        log_path: Path,
        *,
        options: Sequence[str] = SIMULATION,
        trust: str = "insecure = true",
    ) -> None:
        self.log_path = log_path
        self.mark = uuid.uuid4().hex
        self.port = 0
        self._options = options
        self._trust = trust
        self._home = Path(tempfile.mkdtemp(prefix="flr-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalSuperLink:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def start_flwr(self, *arguments: str, log_path: Path) -> subprocess.Popen[bytes]:
        """Start Flower's command against this SuperLink.

        Parameters
        ----------
        *arguments : str
            Of ``flwr``.
        log_path : Path
            Its output is appended there.

        Returns
        -------
        subprocess.Popen[bytes]
            The process.
        """
        with log_path.open("ab") as log:
            return subprocess.Popen(
                [command("flwr"), *arguments],
                cwd=self.neutral_folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def last_run(self) -> dict[str, Any]:
        """Ask how the latest run stands; the exit code of ``flwr run`` does not say.

        Returns
        -------
        dict[str, Any]
            The run as ``flwr list`` describes it; empty if there is none.
        """
        answer = subprocess.run(
            [command("flwr"), "list", CONNECTION, "--limit", "1", "--format", "json"],
            cwd=self.neutral_folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        try:
            runs = json.loads(answer.stdout).get("runs") or [{}]
        except ValueError:
            runs = [{}]
        latest: dict[str, Any] = runs[0]
        return latest

    def is_alive(self) -> bool:
        """Say whether the SuperLink's own process still runs.

        Returns
        -------
        bool
            False once it has ended.
        """
        return self._process is not None and self._process.poll() is None

    @property
    def neutral_folder(self) -> Path:
        """An empty folder, which hides nobody's modules."""
        return self._home / "empty"

    def environment(self) -> dict[str, str]:
        """Give the environment of processes that belong to this SuperLink.

        Returns
        -------
        dict[str, str]
            The caller's, with a home of its own for Flower, and the mark.
        """
        environment = dict(os.environ)
        # Ray would join a cluster that it is told of.
        environment.pop("RAY_ADDRESS", None)
        # The SuperLink starts its helpers by name, also if no environment is active.
        path = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
        environment |= {
            "PATH": os.pathsep.join(path),
            MARK: self.mark,
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else Ray hides the GPU from clients that reserve no share of one.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        ray_folder = str(self._home / "ray")
        if len(ray_folder) <= _LONGEST_RAY_FOLDER:
            environment["RAY_TMPDIR"] = ray_folder
        return environment

    def _start(self) -> None:
        self.neutral_folder.mkdir()
        (self._home / "ray").mkdir()
        self.port = free_port()
        (self._home / "config.toml").write_text(
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"\n'
            f"{self._trust}\n"
        )
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    command("flower-superlink"),
                    *self._options,
                    "--disable-runtime-dependency-installation",
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                ],
                cwd=self.neutral_folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not answers(self.port):
            if not self.is_alive() or time.monotonic() > deadline:
                raise SimulationError(
                    f"Flower's SuperLink did not start; its output is in "
                    f"{self.log_path}."
                )
            time.sleep(_POLL_SECONDS)

    def _stop(self) -> None:
        stop_marked_processes(self.mark)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

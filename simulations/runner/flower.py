"""One run through ``flwr run`` and Ray, and how it really ended."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import PROJECT_FOLDER
from ..errors import SimulationError
from ..experiments import Run
from ..results import RunFolder
from .failures import LOG_NAME, last_line, raise_written_error
from .processes import has_process
from .progress import OnRound
from .superlink import CONNECTION, LocalSuperLink

_POLL_SECONDS = 0.2
_CHECK_SECONDS = 2.0
# The process that holds the ServerApp, and what it may take to say goodbye.
_SERVER_PROCESS = "flwr-simulation"
_GOODBYE_SECONDS = 6.0


def run_with_flower(
    link: LocalSuperLink,
    run: Run,
    folder: Path,
    on_round: OnRound,
    *,
    num_gpus_per_client: float,
) -> None:
    """Run one training through Flower's simulation runtime.

    Parameters
    ----------
    link : LocalSuperLink
        The SuperLink to submit to.
    run : Run
        What to run; its settings' `out` is `folder`.
    folder : Path
        Where the run writes its files.
    on_round : OnRound
        Called with each line of rounds.jsonl.
    num_gpus_per_client : float
        Share of a GPU that Ray reserves for each client at work.

    Raises
    ------
    SimulationError
        If the run did not complete, with the reason in one sentence.
    """
    log_path = folder / LOG_NAME
    process = link.start_flwr(
        "run",
        str(PROJECT_FOLDER),
        CONNECTION,
        "--stream",
        "--federation-config",
        f"num-supernodes={run.num_clients} client-resources-num-cpus=1 "
        f"client-resources-num-gpus={num_gpus_per_client}",
        "--run-config",
        to_toml(run.settings.to_run_config()),
        log_path=log_path,
    )
    results = RunFolder(folder)
    _watch(link, process, results, on_round)
    raise_written_error(folder)
    if process.returncode != 0:
        raise SimulationError(
            f"flwr run refused: {last_line(log_path)} (see {log_path})."
        )
    status = link.last_run().get("status", "unknown")
    num_rounds = len(results.read_rounds()) - 1
    if status != "finished:completed" or num_rounds != run.settings.num_rounds:
        raise SimulationError(
            f"the ServerApp ended after {max(num_rounds, 0)} of "
            f"{run.settings.num_rounds} rounds without giving a reason (status "
            f"{status!r}), as a killed process does; see {log_path}."
        )


def _watch(
    link: LocalSuperLink,
    process: subprocess.Popen[bytes],
    results: RunFolder,
    on_round: OnRound,
) -> None:
    num_seen = 0
    server_seen = False
    last_check = server_alive_at = time.monotonic()
    while process.poll() is None:
        num_seen = _report(results, num_seen, on_round)
        now = time.monotonic()
        if now - last_check > _CHECK_SECONDS:
            last_check = now
            if has_process(link.mark, _SERVER_PROCESS):
                server_seen, server_alive_at = True, now
            # The log stream of a killed ServerApp would stay open for a minute.
            if server_seen and now - server_alive_at > _GOODBYE_SECONDS:
                process.terminate()
                process.wait()
                # The status says how it ended.
                process.returncode = 0
        if not link.is_alive():
            raise SimulationError(f"Flower's SuperLink died; see {link.log_path}.")
        time.sleep(_POLL_SECONDS)
    _report(results, num_seen, on_round)


def _report(results: RunFolder, num_seen: int, on_round: OnRound) -> int:
    rounds = results.read_rounds()
    for entry in rounds[num_seen:]:
        on_round(entry)
    return len(rounds)


def to_toml(config: Mapping[str, Any]) -> str:
    """Write a run config as ``flwr run --run-config`` wants it.

    Parameters
    ----------
    config : Mapping[str, Any]
        Texts, numbers and booleans by key.

    Returns
    -------
    str
        One line.
    """
    # A JSON string, number or boolean is written alike in TOML.
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())

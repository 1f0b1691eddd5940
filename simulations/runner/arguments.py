"""The command line of ``python -m simulations``."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import default_run_config
from ..errors import SimulationError, choose
from ..experiments import EXPERIMENTS, Run

_DEFAULT_EXPERIMENT = "digits"
# Run config keys that have a flag of their own; --set reaches all others.
_FLAGS = {
    "dataset": str,
    "model": str,
    "num-rounds": int,
    "fraction-train": float,
    "uplink": str,
    "feedback": str,
    "downlink": str,
    "strategy": str,
    "seed": int,
}


@dataclass(frozen=True)
class Arguments:
    """What the command line asks for."""

    runs: list[Run]
    name: str
    out: Path
    engine: str
    num_jobs: int
    num_gpus_per_client: float
    resume: bool


def read_arguments(argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line.

    Parameters
    ----------
    argv : Sequence[str] | None
        Arguments; by default those of the process.

    Returns
    -------
    Arguments
        The runs to do, and how.
    """
    found = _parser().parse_args(argv)
    overrides: dict[str, Any] = dict(_key_and_value(text) for text in found.set)
    for key in _FLAGS:
        value = getattr(found, key.replace("-", "_"))
        if value is not None:
            overrides[key] = value
    if "out" in overrides:
        raise SimulationError("run config: out is set by --out and --name.")
    experiment = choose(EXPERIMENTS, found.experiment, "experiment")
    runs = experiment.runs(overrides, found.num_clients)
    if "checkpoint" in overrides and len(runs) > 1:
        raise SimulationError(
            f"run config: one checkpoint cannot serve {len(runs)} runs; name one run."
        )
    if found.num_jobs < 1:
        raise SimulationError(f"--num-jobs must be at least 1, found {found.num_jobs}.")
    if found.resume and not found.name:
        raise SimulationError("--resume needs the --name of what to go on with.")
    check(runs)
    return Arguments(
        runs=runs,
        name=found.name or f"{found.experiment}-{time.strftime('%Y%m%d-%H%M%S')}",
        out=Path(found.out).resolve(),
        engine=found.engine,
        num_jobs=found.num_jobs,
        num_gpus_per_client=found.num_gpus_per_client,
        resume=found.resume,
    )


def check(runs: Sequence[Run]) -> None:
    """Refuse what could not run, before anything is started.

    Parameters
    ----------
    runs : Sequence[Run]
        The runs to check.
    """
    # Flower and the library take seconds to import: not before --help has answered.
    from fl_lowrank.errors import CompressionError

    from ..data import DATASETS, PARTITIONS
    from ..models import MODELS
    from ..strategy import build_strategy
    from ..training import PRECISIONS

    for run in runs:
        if run.num_clients < 1:
            raise SimulationError(
                f"--num-clients must be at least 1, found {run.num_clients}."
            )
        choose(DATASETS, run.settings.dataset, "dataset")
        choose(MODELS, run.settings.model, "model")
        choose(PRECISIONS, run.settings.precision, "precision")
        choose(PARTITIONS, run.settings.partition, "partition")
        try:
            build_strategy(run.settings)
        except CompressionError as error:
            raise SimulationError(f"run config: {error}") from error


def _parser() -> argparse.ArgumentParser:
    defaults = default_run_config()
    parser = argparse.ArgumentParser(
        prog="python -m simulations",
        description="Train with many clients and compressed updates, through Flower.",
    )
    parser.add_argument(
        "experiment",
        nargs="?",
        default=_DEFAULT_EXPERIMENT,
        help=f"one of {', '.join(EXPERIMENTS)} (default: %(default)s)",
    )
    parser.add_argument("--name", help="folder of the results (default: with the time)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on in the folder --name: complete runs in it are not repeated",
    )
    parser.add_argument("--out", default="runs", help="where it lies (%(default)s)")
    parser.add_argument("--num-clients", type=int, help="clients of the federation")
    for key, kind in _FLAGS.items():
        parser.add_argument(
            f"--{key}", type=kind, help=f"run config; app default {defaults[key]!r}"
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key of the run config; may be repeated",
    )
    parser.add_argument(
        "--engine",
        choices=("flower", "loopback"),
        default="flower",
        help="flwr run with Ray, or all in process without it (%(default)s)",
    )
    parser.add_argument(
        "--num-jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="runs side by side with --engine loopback (%(default)s)",
    )
    parser.add_argument(
        "--num-gpus-per-client",
        type=float,
        default=0.0,
        help="share of a GPU that Ray reserves for a client (%(default)s)",
    )
    return parser


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SimulationError(f"--set expects KEY=VALUE, found {text!r}.")
    if key not in default_run_config():
        raise SimulationError(
            f"run config: unknown key {key!r}, choose one of "
            f"{', '.join(default_run_config())}."
        )
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value

"""The command line of ``python -m simulations.decentralised``."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import shlex
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from fl_lowrank.errors import CompressionError
from fl_lowrank.mixing import RULES
from fl_lowrank.spec import parse_rules

from ..data import DATASETS
from ..errors import SimulationError, choose
from ..models import MODELS
from .experiments import EXPERIMENTS
from .graphs import EXAMPLES, read_graph
from .settings import Settings, flag

_DEFAULT_EXPERIMENT = "digits"
_OWN = "own"
_TABLES: Mapping[str, Mapping[str, object]] = {
    "dataset": DATASETS,
    "model": MODELS,
    "weights": RULES,
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line asks for; runs by the name of their setting."""

    runs: dict[str, Settings]
    root: Path
    num_jobs: int
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
        The runs to do, all checked, and how.
    """
    found = _parser().parse_args(argv)
    overrides = {
        name: value for name in _fields() if (value := getattr(found, name)) is not None
    }
    experiment = found.experiment
    if experiment is None:
        experiment = _OWN if overrides else _DEFAULT_EXPERIMENT
    settings = choose({**EXPERIMENTS, _OWN: {_OWN: {}}}, experiment, "experiment")
    names = found.only.split(",") if found.only else list(settings)
    root = Path(found.out).resolve() / (
        found.name or f"decentralised-{experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    runs = {}
    for name in names:
        changes = {**choose(settings, name, "setting"), **overrides}
        one = Settings(**changes)
        runs[name] = dataclasses.replace(one, out=str(root / name / f"seed-{one.seed}"))
    for one in runs.values():
        _check(one)
    if found.num_jobs < 1:
        raise SimulationError(f"--num-jobs must be at least 1, found {found.num_jobs}.")
    if found.resume and not found.name:
        raise SimulationError("--resume needs the --name of what to go on with.")
    return Arguments(runs, root, found.num_jobs, found.resume)


@functools.cache
def from_text(text: str, out: str) -> Settings:
    """Read what a run config asks for: one run.

    Parameters
    ----------
    text : str
        As on the command line.
    out : str
        Folder for its results; empty for none.

    Returns
    -------
    Settings
        The run's settings.
    """
    try:
        runs = list(read_arguments(shlex.split(text)).runs.values())
    except (SystemExit, ValueError) as error:
        # argparse has told why, and would end the process.
        why = "see above" if isinstance(error, SystemExit) else str(error)
        raise SimulationError(
            f"run config: decentralised {text!r} cannot be read: {why}; try it with "
            "python -m simulations.decentralised."
        ) from error
    if len(runs) != 1:
        raise SimulationError(
            f"run config: decentralised must name one run, found {len(runs)} in "
            f"{text!r}; choose one by --only."
        )
    return dataclasses.replace(runs[0], out=out)


def _check(settings: Settings) -> None:
    """Refuse what could not run, before anything is started."""
    for name, table in _TABLES.items():
        choose(table, getattr(settings, name), name)
    num_agents = read_graph(settings.topology).num_nodes
    settings.periods_to_train(num_agents)
    settings.periods_to_mix(num_agents)
    try:
        if settings.compressor != "none":
            parse_rules(settings.compressor)
    except CompressionError as error:
        raise SimulationError(f"--compressor: {error}") from error


def _fields() -> dict[str, type[Any]]:
    types = get_type_hints(Settings)
    return {
        f.name: types[f.name] for f in dataclasses.fields(Settings) if f.name != "out"
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.decentralised",
        description="Train many agents without a centre. Settings that are given "
        "without an experiment make one run of their own.",
        epilog=f"topologies: {EXAMPLES}",
    )
    parser.add_argument(
        "experiment",
        nargs="?",
        help=f"one of {', '.join(EXPERIMENTS)} (default: {_DEFAULT_EXPERIMENT})",
    )
    parser.add_argument(
        "--only", help="settings of the experiment, with commas between"
    )
    parser.add_argument("--name", help="folder of the results (default: with the time)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on in the folder --name: complete runs in it are not repeated",
    )
    parser.add_argument("--out", default="runs", help="where it lies (%(default)s)")
    parser.add_argument(
        "--num-jobs", type=int, default=1, help="runs side by side (%(default)s)"
    )
    runs = parser.add_argument_group("settings", "For all runs of an experiment.")
    defaults, phrases = Settings(), _phrases()
    for name, table in _TABLES.items():
        phrases[name] = f"One of {', '.join(table)}."
    for name, kind in _fields().items():
        runs.add_argument(
            flag(name),
            dest=name,
            type=kind,
            metavar=kind.__name__.upper(),
            help=f"{phrases[name]} (default: {getattr(defaults, name)!r})",
        )
    return parser


def _phrases() -> dict[str, str]:
    """Take what a setting means from the docstring: entries of names and a text."""
    _, _, entries = (inspect.getdoc(Settings) or "").partition("----------\n")
    found: dict[str, str] = defaultdict(str)
    for entry in re.split(r"\n(?=\S)", entries):
        names, _, text = entry.partition(" : ")
        phrase = " ".join(text.split()[1:]).replace("``", "").replace("`", "")
        found |= dict.fromkeys(names.split(", "), phrase.replace("%", "%%"))
    return found

"""What a client's memory costs: seconds of a round, and gigabytes of a simulation.

``python -m benchmarks.memory`` trains the CNN of 1,474,550 parameters for one local
epoch of 600 images in batches of 32, over the loopback grid: without the mod, with it
and the memory in the Context, and with it and the memory in a durable file. The three
take turns. A round's time includes the server and the messages' bytes, of which the
mod saves some, and has the bars; a client's is that of its ClientApp alone. Both are
medians of the clock's seconds, so run it on a machine that does nothing else, and name
a ``--folder`` on the disk that is to be measured.

``python -m benchmarks.memory --clients 1000`` simulates so many clients, ``--sampled``
of them a round, until each has taken part once, and tells the peak of the process's
memory (resident set), the bytes of files and the time of a round; with
``--home context`` instead of the default for such a model to see the difference.

The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from rich.console import Console
from rich.table import Table

from clients import CompressionMod, ContextHome, FileHome
from simulations.loopback import LoopbackGrid
from strategies import Compressed

from .cnn_client import LR, cnn_app, cnn_arrays, quiet

UPLINK, FEEDBACK = "topk(fraction=0.01) >> natural()", "ef"
#: Most that a round may take, over one without the mod.
BARS = {"in the Context": 1.05, "in a durable file": 1.15}
MAX_GIBIBYTES = 12.0
_PLAIN = "without the mod"

Seconds = tuple[float, float]  # of the client, and of the round


def fed_avg() -> FedAvg:
    """Make a strategy that trains with all connected nodes."""
    return FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
    )


def train(
    strategy: Strategy,
    grid: LoopbackGrid,
    num_rounds: int,
    after_round: Callable[[int], None] = lambda round_: None,
) -> list[float]:
    """Run a training; give the seconds of each round."""
    ends: list[float] = []

    def at_round_end(round_: int, arrays: ArrayRecord) -> None:
        del arrays
        ends.append(time.perf_counter())
        after_round(round_)

    strategy.start(
        grid,
        cnn_arrays(),
        num_rounds=num_rounds,
        train_config=ConfigRecord({"lr": LR}),
        evaluate_fn=at_round_end,
    )
    return [after - before for before, after in pairwise(ends)]


def measure(folder: Path, num_images: int, turns: int) -> dict[str, Seconds]:
    """Give the median seconds for each place of the memory."""
    mods = {
        _PLAIN: None,
        "in the Context": CompressionMod(memory=ContextHome()),
        "in a durable file": CompressionMod(memory=FileHome(folder)),
    }
    of_client: dict[str, list[float]] = {name: [] for name in mods}
    of_round: dict[str, list[float]] = {name: [] for name in mods}
    for _ in range(turns):
        for name, mod in mods.items():
            app = cnn_app([] if mod is None else [mod], num_images)
            strategy = fed_avg() if mod is None else compressed()
            rounds = train(strategy, LoopbackGrid(app, 1), 4)
            # In the first round there is no memory yet.
            of_client[name] += app.seconds[1:]
            of_round[name] += rounds[1:]
    return {
        name: (statistics.median(of_client[name]), statistics.median(of_round[name]))
        for name in mods
    }


def compressed() -> Compressed:
    """Make the strategy that compresses."""
    return Compressed(fed_avg(), UPLINK, FEEDBACK)


def compare(found: dict[str, Seconds], console: Console) -> list[str]:
    """Print the seconds; give what misses its bar."""
    table = Table(title="CNN, one local epoch, one client")
    table.add_column("memory")
    for column in ("client s", "/ without", "round s", "/ without", "bar"):
        table.add_column(column, justify="right")
    faults = []
    for name, seconds in found.items():
        ratios = [s / plain for s, plain in zip(seconds, found[_PLAIN], strict=True)]
        bar = BARS.get(name)
        table.add_row(
            name,
            *(f"{x:.3f}" for pair in zip(seconds, ratios, strict=True) for x in pair),
            "" if bar is None else f"{bar:.2f}",
        )
        _, of_round = ratios
        if bar is not None and of_round > bar:
            faults.append(f"memory {name}: {of_round:.3f} of what a round is without")
    console.print(table)
    return faults


@dataclass(frozen=True)
class Simulated:
    """What a simulation of many clients took."""

    num_clients: int
    num_rounds: int
    round_seconds: float
    before_gibibytes: float
    peak_gibibytes: float
    num_files: int
    disk_gibibytes: float


def simulate(
    home: str, num_clients: int, sampled: int, num_images: int, folder: Path
) -> Simulated:
    """Let each of many clients take part once.

    ``folder`` becomes that of the process's temporary files.
    """
    os.environ["TMPDIR"] = str(folder)
    mod = (
        CompressionMod(memory=ContextHome()) if home == "context" else CompressionMod()
    )
    app = cnn_app([mod], num_images)
    grid = LoopbackGrid(app, num_clients)
    starts = range(0, num_clients, sampled)
    groups = [set(grid.node_ids[i : i + sampled]) for i in starts]

    def connect(round_: int) -> None:
        if round_ < len(groups):  # of the next round, and nobody else
            grid.offline = set(grid.node_ids) - groups[round_]

    connect(0)
    before = _peak_gibibytes()
    seconds = train(compressed(), grid, len(groups), connect)
    if len(app.seconds) != num_clients:
        raise RuntimeError(f"{len(app.seconds)} of {num_clients} have taken part")
    files = list(folder.glob("*/*/*.memory/*.full"))
    return Simulated(
        num_clients,
        len(groups),
        statistics.mean(seconds),
        before,
        _peak_gibibytes(),
        len(files),
        sum(f.stat().st_size for f in files) / 2**30,
    )


def _peak_gibibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe(found: Simulated, console: Console) -> list[str]:
    """Print what a simulation took; give what misses its bar."""
    title = f"{found.num_clients} clients, each once, in {found.num_rounds} rounds"
    table = Table(title=title)
    for column in (
        "s a round",
        "GiB before",
        "peak GiB",
        "bar",
        "files",
        "GiB of them",
    ):
        table.add_column(column, justify="right")
    table.add_row(
        f"{found.round_seconds:.2f}",
        f"{found.before_gibibytes:.2f}",
        f"{found.peak_gibibytes:.2f}",
        f"{MAX_GIBIBYTES:.0f}",
        str(found.num_files),
        f"{found.disk_gibibytes:.2f}",
    )
    console.print(table)
    if found.peak_gibibytes <= MAX_GIBIBYTES:
        return []
    return [f"{found.peak_gibibytes:.1f} GiB of memory"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--clients", type=int, default=0, help="simulate so many")
    parser.add_argument("--sampled", type=int, default=20, help="of them a round")
    parser.add_argument("--home", choices=("auto", "context"), default="auto")
    parser.add_argument("--images", type=int, help="600; of each simulated client 32")
    parser.add_argument("--turns", type=int, default=5, help="of three rounds each")
    parser.add_argument("--folder", type=Path, help="for files, on the disk to measure")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100)
    with quiet(), tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.clients:
            many = (options.clients, options.sampled, options.images or 32)
            faults = describe(simulate(options.home, *many, Path(name)), console)
        else:
            found = measure(Path(name), options.images or 600, options.turns)
            faults = compare(found, console)
    for fault in faults:
        console.print(f"[red]missed its bar:[/red] {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

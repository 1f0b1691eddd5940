"""Errors of ``budget(bytes=...)`` beside those of fixed settings at equal bytes.

``python -m benchmarks.allocation`` trains models for some batches on real data, sends
their updates with one setting for all tensors, and then with a budget of just as many
bytes. It ends with exit code 1 if a bar is missed:

- never more bytes than allowed;
- at least 20% less squared error than the same fraction (``topk``) or the same relative
  error (``ecsq``) for each tensor;
- never more than ``flat(topk)``, or than one absolute step for all tensors.

The CNN and ResNet-18 need data, see `benchmarks.real_models`; without them the CNN of
the digits is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.model import layout_of

from .real_models import TRAINING, available, real_update

FRACTIONS = (0.001, 0.01, 0.05)
ERRORS = (0.7, 0.4, 0.1)
#: Absolute steps over the root mean square of the whole update.
STEPS = (12.0, 4.0, 1.5)
BELOW_EACH_TENSOR = 0.8
_SLACK = 1.0 + 1e-9

Update = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """A message: its size, what it loses, how long encoding takes."""

    num_bytes: int
    nmse: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A reference, and budgets of its size, each with the largest ratio of errors."""

    name: str
    reference: Sent
    budgets: dict[str, Sent]
    bars: dict[str, float]

    def ratio(self, method: str) -> float:
        """Squared error over that of the reference."""
        return self.budgets[method].nmse / self.reference.nmse

    def missed(self, method: str) -> bool:
        """Whether a budget is exceeded or its bar is missed."""
        over = self.budgets[method].num_bytes > self.reference.num_bytes
        return over or self.ratio(method) > self.bars.get(method, math.inf) * _SLACK


def send(text: str, update: Update) -> Sent:
    """Send an update by rules."""
    codec = fll.ModelCodec(text)
    start = time.perf_counter()
    data, _ = codec.encode(update, {}, fll.rng.stream(0, "allocation"))
    seconds = time.perf_counter() - start
    decoded = codec.decode(data, layout_of(update))
    lost = sum(
        float((decoded[k].double() - x).square().sum()) for k, x in update.items()
    )
    return Sent(len(data), lost / energy(update), seconds)


def energy(update: Update) -> float:
    """Sum of the squares of all entries."""
    return sum(float(x.double().square().sum()) for x in update.values())


def common_step(update: Update, step: float) -> str:
    """Write rules for one absolute step: ``ecsq`` takes it relative to each tensor."""
    rms = math.sqrt(energy(update) / sum(x.numel() for x in update.values()))
    rules = []
    for name, x in update.items():
        own = float(x.double().square().mean().sqrt())
        relative = min(max(step * rms / own, 0.002), 1000.0) if own else 1.0
        rules.append(f"{name}: ecsq(step={relative:.6g})")
    return "; ".join(rules)


def references(update: Update) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Give names and texts of the fixed settings, and the bars of each method."""
    each, all_ = BELOW_EACH_TENSOR, 1.0
    for fraction in FRACTIONS:
        inner = f"topk(fraction={fraction}) >> natural()"
        yield inner, f"*: {inner}", {"topk": each, "dither": each}
        flat = f"flat(inner={inner})"
        yield flat, f"*: {flat}", {"topk": all_, "dither": all_}
    for nmse in ERRORS:
        text = f"ecsq(nmse={nmse})"
        yield text, f"*: {text}", {"dither": each}
    for step in STEPS:
        name = f"ecsq, one step of {step:g} rms"
        yield name, common_step(update, step), {"dither": all_}


def rows(
    update: Update, methods: Sequence[str] = ("topk", "dither", "best")
) -> Iterator[Row]:
    """Measure all references of an update, and budgets of their sizes."""
    for name, text, bars in references(update):
        reference = send(text, update)
        budgets = {
            method: send(
                f'budget(bytes={reference.num_bytes}, method="{method}")', update
            )
            for method in methods
        }
        yield Row(name, reference, budgets, bars)


def show(title: str, measured: Sequence[Row], console: Console) -> None:
    """Print rows as a table: ratios of squared errors to that of the reference."""
    table = Table(title=title)
    table.add_column("the same for each tensor, or for all")
    for column in ("bytes", "NMSE", "seconds"):
        table.add_column(column, justify="right")
    for method in measured[0].budgets:
        for column in (f"budget {method}", "ratio", "bar", "seconds"):
            table.add_column(column, justify="right")
    for row in measured:
        cells = [row.name, f"{row.reference.num_bytes:,}", f"{row.reference.nmse:.4f}"]
        cells.append(f"{row.reference.seconds:.2f}")
        for method, sent in row.budgets.items():
            style = "[red]" if row.missed(method) else ""
            bar = f"{row.bars[method]:g}" if method in row.bars else ""
            cells += [f"{sent.nmse:.4f}", f"{style}{row.ratio(method):.3f}", bar]
            cells.append(f"{sent.seconds:.2f}")
        table.add_row(*cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each model; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation")
    parser.add_argument("models", nargs="*", help=f"out of {', '.join(TRAINING)}")
    chosen = parser.parse_args(arguments).models
    names = chosen or available("cnn", "resnet18") or ["digits-cnn"]
    console = Console(width=None if sys.stdout.isatty() else 160)
    missed = 0
    for name in names:
        update = real_update(name)
        numel = sum(x.numel() for x in update.values())
        measured = list(rows(update))
        threads = torch.get_num_threads()
        title = f"{name}: {len(update)} tensors, {numel:,} entries, {threads} threads"
        show(title, measured, console)
        for row in measured:
            for method in row.budgets:
                if row.missed(method):
                    missed += 1
                    console.print(f"[red]missed:[/red] {name}, {row.name}, {method}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Milliseconds of encoding and decoding, as a ratio to ``torch.topk``.

``python -m benchmarks.speed`` sends Gaussian numbers, 2^20 and 11 million of them, to
bytes and back, on one thread. The unit is ``torch.topk`` of 1% of the magnitudes of the
same tensor in the same run. Times are the processor's, not the clock's; all actions
take turns, and each counts by its best turn, so that a busy machine slows them alike.
The exit code is 1 if a bar is missed. Methods that the table of compressors does not
have are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.compressors import COMPRESSORS

from .updates import gaussian

SIZES = (1 << 20, 11_000_000)
#: Most that encoding and decoding may take together, in units of ``torch.topk``.
BARS: dict[str, float | None] = {
    "topk(fraction=0.01)": 0.6,
    "topk(fraction=0.01) >> natural()": None,
    "sparse_dithering(nu=0.1)": 4.0,
    "sparse_dithering_unbiased(omega=0.25)": 4.0,
    "ecsq(nmse=0.1)": 4.0,
    "ecsq(nmse=0.01)": None,
    "dither(nmse=0.1)": 4.0,
    "dither(nmse=0.01)": None,
    "dither_unbiased(nmse=0.1)": 4.0,
    "sign()": 0.2,
    "eden(bits=1)": 3.5,
    "eden(bits=4)": None,
    "qsgd(levels=4)": None,
    "terngrad()": None,
    "uniform(bits=8)": None,
    "natural()": None,
}


@dataclass(frozen=True)
class Row:
    """Best times of one method, in milliseconds of the processor."""

    text: str
    encode_ms: float
    decode_ms: float
    unit_ms: float  # of torch.topk

    @property
    def ratio(self) -> float:
        """Both over ``torch.topk``."""
        return (self.encode_ms + self.decode_ms) / self.unit_ms

    @property
    def missed(self) -> bool:
        """Whether its bar is exceeded."""
        bar = BARS.get(self.text)
        return bar is not None and self.ratio > bar


def exists(text: str) -> bool:
    """Whether all methods of a text are in the table."""
    return all(part.partition("(")[0] in COMPRESSORS for part in text.split(" >> "))


def best_in_turns(
    actions: Mapping[str, Callable[[], object]], turns: int
) -> dict[str, float]:
    """Time actions one after the other, several times; the best of each, in ms."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(turns):
        for name, action in actions.items():
            start = time.process_time()
            action()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def measure(x: Tensor, chosen: Sequence[str], turns: int) -> list[Row]:
    """Time methods on a vector, to bytes and back."""
    magnitude = x.abs()
    k = max(x.numel() // 100, 1)
    actions: dict[str, Callable[[], object]] = {
        "unit": lambda: torch.topk(magnitude, k, sorted=False)
    }
    for text in chosen:
        actions |= _actions(text, x)
    best = best_in_turns(actions, turns)
    return [
        Row(text, best[f"encode {text}"], best[f"decode {text}"], best["unit"])
        for text in chosen
    ]


def _actions(text: str, x: Tensor) -> dict[str, Callable[[], object]]:
    compressor = fll.parse(text)
    state = compressor.init(tuple(x.shape))

    def encode() -> bytes:
        return fll.pack(compressor.encode(x, state, fll.rng.stream(1))[0])

    data = encode()
    return {
        f"encode {text}": encode,
        f"decode {text}": lambda: fll.decode(fll.unpack(data)),
    }


def show(numel: int, rows: Sequence[Row], console: Console) -> None:
    """Print rows as a table."""
    unit = f"{rows[0].unit_ms:.1f}" if rows else "no"
    table = Table(title=f"{numel:,} entries; torch.topk of 1%: {unit} ms")
    table.add_column("compressor")
    for column in ("encode ms", "decode ms", "/ torch.topk", "bar"):
        table.add_column(column, justify="right")
    for row in rows:
        bar = BARS.get(row.text)
        table.add_row(
            row.text,
            f"{row.encode_ms:.1f}",
            f"{row.decode_ms:.1f}",
            f"[red]{row.ratio:.2f}[/red]" if row.missed else f"{row.ratio:.2f}",
            "" if bar is None else str(bar),
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each size; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("--methods", nargs="+", help="texts; all of the table")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--turns", type=int, default=7, help="of which the best counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 100)
    chosen = [text for text in options.methods or BARS if exists(text)]
    faults = []
    for size in options.sizes:
        rows = measure(gaussian(size), chosen, options.turns)
        show(size, rows, console)
        faults += [f"{row.text}, {size:,} entries" for row in rows if row.missed]
    for fault in faults:
        console.print(f"[red]missed its bar:[/red] {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

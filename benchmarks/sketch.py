"""Sums of sketches: bytes beside plain messages, exactness, and where they end.

``python -m benchmarks.sketch`` sums the updates of 16 clients, the largest 1% of 10^6
entries each, at several correlations between clients, and prints one row for each:
bytes of a client's sketch and of its plain ``topk`` message, and bytes of the sums.
The capacity is what a server would choose: a tenth more than the union of the round
before. A second table takes cells away from one sum until it cannot be decoded. The
exit code is 1 if a sum is not exact, or if one that cannot be is not refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.errors import SketchError
from fl_lowrank.types import Coding, Field

from .sizes import best_ms

D = 10**6
CLIENTS = 16
FRACTION = 0.01
CORRELATIONS = (0.0, 0.5, 0.9, 0.99)
#: Cells for each entry of the union; below 1.2 nothing can be complete.
RATIOS = (1.0, 1.1, 1.15, 1.2, 1.22, 1.23, 1.25, 1.3)
HOPELESS = 1.2
#: A server expects so much more than the union that it saw.
MARGIN = 1.1


def updates(correlation: float, turn: int, numel: int, clients: int) -> list[Tensor]:
    """Draw Gaussian updates of one round with this pairwise correlation."""
    rng = fll.rng.stream(0, "sketch", turn)
    common = rng.child("common").normal(numel) * correlation**0.5
    own = (1.0 - correlation) ** 0.5
    return [common + own * rng.child("own", c).normal(numel) for c in range(clients)]


def union_of(payloads: Sequence[fll.Payload]) -> int:
    """Count the positions that sparse messages hold together."""
    return int(torch.cat([p.tensor("indices") for p in payloads]).unique().numel())


def sent(compressor: fll.Compressor, xs: Sequence[Tensor]) -> list[bytes]:
    """Encode a message for each tensor."""
    rng = fll.rng.stream(1)
    return [fll.pack(compressor.encode(x, {}, rng)[0]) for x in xs]


@dataclass(frozen=True)
class Row:
    """One round of clients."""

    correlation: float
    kept: int
    union: int
    cells: int
    client_bytes: float
    client_plain_bytes: float
    sum_bytes: int
    sum_plain_bytes: int
    all_plain_bytes: int
    add_ms: float
    decode_ms: float
    exact: bool
    off_plain: float


def plain_sum(payloads: Sequence[fll.Payload]) -> bytes:
    """Write what a relay that decodes would send on: the union in float32."""
    dense = torch.zeros(payloads[0].numel, dtype=torch.float64)
    fll.accumulate(payloads, [1.0] * len(payloads), dense)
    support = dense.nonzero().reshape(-1)
    fields = {
        "indices": Field(Coding.INDICES, support),
        "values": Field(Coding.RAW, dense[support].to(torch.float32)),
    }
    first = payloads[0]
    return fll.pack(fll.Payload(first.kind, first.shape, first.dtype, fields))


def measure(
    correlation: float,
    numel: int = D,
    clients: int = CLIENTS,
    fraction: float = FRACTION,
    repeats: int = 3,
) -> Row:
    """Sum one round, with a capacity known from the round before."""
    topk = fll.TopK(fraction=fraction)
    before = updates(correlation, 0, numel, clients)
    seen = union_of([fll.unpack(data) for data in sent(topk, before)])
    capacity = max(fraction, min(1.0, MARGIN * seen / numel))
    xs = updates(correlation, 1, numel, clients)
    plain = sent(topk, xs)
    plain_payloads = [fll.unpack(data) for data in plain]
    sketches = sent(fll.Sketch(fraction=fraction, capacity=capacity), xs)
    payloads = [fll.unpack(data) for data in sketches]
    total = fll.add(payloads)
    data = fll.pack(total)
    peeled = fll.peel(fll.unpack(data))
    expected = torch.zeros(numel, dtype=torch.float64)
    for payload in payloads:
        expected += fll.peel(payload).values
    reference = torch.zeros(numel, dtype=torch.float64)
    fll.accumulate(plain_payloads, [1.0] * clients, reference)
    off = (peeled.values - reference).norm() / reference.norm()
    return Row(
        correlation,
        plain_payloads[0].tensor("indices").numel(),
        peeled.union,
        peeled.cells,
        sum(map(len, sketches)) / clients,
        sum(map(len, plain)) / clients,
        len(data),
        len(plain_sum(plain_payloads)),
        sum(map(len, plain)),
        best_ms(lambda: fll.add(payloads), repeats),
        best_ms(lambda: fll.peel(total), repeats),
        not peeled.unpeeled.numel() and torch.equal(peeled.values, expected),
        float(off),
    )


@dataclass(frozen=True)
class Attempt:
    """A sum with too few cells, or just enough."""

    union: int
    cells: int
    unpeeled: int
    reported: int | None
    off: float
    rounds: int

    @property
    def missed(self) -> bool:
        """Whether something was hidden, or nothing lost where something must be."""
        hidden = (self.reported or 0) != self.unpeeled
        wrong = not self.unpeeled and self.off > 0.0
        return (
            hidden
            or wrong
            or (self.cells <= HOPELESS * self.union and not self.unpeeled)
        )


def attempts(
    correlation: float = 0.5,
    numel: int = D,
    clients: int = CLIENTS,
    fraction: float = FRACTION,
    ratios: Sequence[float] = RATIOS,
) -> Iterator[Attempt]:
    """Sum the same updates with ever more cells."""
    xs = updates(correlation, 1, numel, clients)
    union = union_of([fll.unpack(d) for d in sent(fll.TopK(fraction=fraction), xs)])
    for ratio in ratios:
        capacity = (ratio * union - 64) / (1.3 * numel)
        sketch = fll.Sketch(fraction=fraction, capacity=capacity)
        payloads = [sketch.encode(x, {}, fll.rng.stream(1))[0] for x in xs]
        total = fll.add(payloads)
        peeled = fll.peel(total)
        expected = torch.zeros(numel, dtype=torch.float64)
        for payload in payloads:
            expected += fll.peel(payload).values
        off = float((peeled.values - expected).norm() / expected.norm())
        reported = None
        try:
            fll.decode(total)
        except SketchError as error:
            reported = error.unpeeled
        yield Attempt(
            peeled.union,
            peeled.cells,
            peeled.unpeeled.numel(),
            reported,
            off,
            peeled.rounds,
        )


def verdict(missed: bool) -> str:
    """Write a cell of the last column."""
    return "[red]missed[/red]" if missed else "ok"


def show_rows(rows: Sequence[Row], console: Console) -> None:
    """Print bytes and exactness."""
    table = Table(
        title=f"sums of {CLIENTS} clients, the largest {FRACTION:.0%} of {D:,} entries"
    )
    for column in (
        *("correlation", "u/k", "R/u", "client: sketch", "client: topk"),
        *("sum: sketch", "sum: sparse", f"{CLIENTS} topk", "add ms", "peel ms"),
        *("off float32", "exact"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row.correlation}",
            f"{row.union / row.kept:.1f}",
            f"{row.cells / row.union:.2f}",
            f"{row.client_bytes:,.0f}",
            f"{row.client_plain_bytes:,.0f}",
            f"{row.sum_bytes:,}",
            f"{row.sum_plain_bytes:,}",
            f"{row.all_plain_bytes:,}",
            f"{row.add_ms:.0f}",
            f"{row.decode_ms:.0f}",
            f"{row.off_plain:.1e}",
            verdict(not row.exact),
        )
    console.print(table)


def show_attempts(tried: Sequence[Attempt], console: Console) -> None:
    """Print what is left over."""
    table = Table(title="the sum at correlation 0.5, with fewer cells")
    for column in ("u", "R/u", "rounds", "unpeeled", "error of peel()", "decode()", ""):
        table.add_column(column, justify="right")
    for attempt in tried:
        table.add_row(
            f"{attempt.union:,}",
            f"{attempt.cells / attempt.union:.4f}",
            f"{attempt.rounds}",
            f"{attempt.unpeeled:,}",
            f"{attempt.off:.3f}",
            "exact" if attempt.reported is None else "SketchError",
            verdict(attempt.missed),
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; gives the exit code."""
    argparse.ArgumentParser(prog="python -m benchmarks.sketch").parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    begin = time.perf_counter()
    rows = [measure(correlation) for correlation in CORRELATIONS]
    show_rows(rows, console)
    console.print("bytes; client: one message; sum: what a relay sends on")
    tried = list(attempts())
    show_attempts(tried, console)
    console.print(f"{time.perf_counter() - begin:.0f} s")
    return int(any(not r.exact for r in rows) or any(t.missed for t in tried))


if __name__ == "__main__":
    sys.exit(main())

"""Bytes, errors and milliseconds of the compressors, with the bars beside them.

``python -m benchmarks.sizes`` prints the table for 2^20 Gaussian numbers, and for a
1024 x 1024 matrix with singular values 1/i; it ends with exit code 1 if a bar is
missed. Times are the best of five on the threads that torch uses; they are no bars.
``--device cuda`` encodes where the tensor lies; bytes are always made, read and decoded
on the host.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.checks.sizes import index_set_bytes
from fl_lowrank.codecs.indices import decode_indices, encode_indices
from fl_lowrank.linalg import orthonormal
from fl_lowrank.types import State

D = 1 << 20
#: What rank 4 of singular values 1/i, i up to 1024, cannot get below.
OPTIMUM_RANK_4 = 0.1340


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    size_bytes: int
    numel: int
    nmse: float | None
    encode_ms: float
    decode_ms: float
    bar_bytes: float | None = None
    bar_nmse: float | None = None

    @property
    def bits_per_entry(self) -> float:
        """Size over the number of entries of the tensor."""
        return 8.0 * self.size_bytes / self.numel

    @property
    def missed(self) -> bool:
        """Whether a bar is exceeded."""
        too_large = self.bar_bytes is not None and self.size_bytes > self.bar_bytes
        too_far = self.bar_nmse is not None and (self.nmse or 0.0) > self.bar_nmse
        return too_large or too_far


def gaussian(device: str = "cpu") -> Tensor:
    """Draw the vector that the bars speak of."""
    return fll.rng.stream(0, "sizes").normal(D).to(device)


def harmonic_matrix(size: int = 1024, device: str = "cpu") -> Tensor:
    """Draw a matrix with singular values 1, 1/2, 1/3, ..."""
    rng = fll.rng.stream(0, "harmonic")
    u = orthonormal(rng.child("u").normal(size, size))
    v = orthonormal(rng.child("v").normal(size, size))
    return ((u / torch.arange(1, size + 1)) @ v.T).to(device)


def best_ms(action: Callable[[], object], repeats: int = 5) -> float:
    """Time an action in milliseconds, the best of some repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(
    text: str,
    x: Tensor,
    bar_bytes: float | None = None,
    bar_nmse: float | None = None,
    warm_rounds: int = 0,
    repeats: int = 5,
) -> Row:
    """Send a tensor through a compressor and its bytes."""
    compressor = fll.parse(text)
    state: State = compressor.init(tuple(x.shape))
    for turn in range(warm_rounds):
        _, state = compressor.encode(x, state, fll.rng.stream(1, turn))
    rng = fll.rng.stream(1, warm_rounds)

    def encode() -> bytes:
        return fll.pack(compressor.encode(x, state, rng)[0])

    def decode() -> Tensor:
        return fll.decode(fll.unpack(data))

    data = encode()
    wide = x.to("cpu", torch.float64)
    off = decode().to(torch.float64) - wide
    nmse = float(off.square().sum() / wide.square().sum())
    name = f"{text}, after {warm_rounds} rounds" if warm_rounds else text
    return Row(
        name,
        len(data),
        x.numel(),
        nmse,
        best_ms(encode, repeats),
        best_ms(decode, repeats),
        bar_bytes,
        bar_nmse,
    )


def index_set(x: Tensor, fraction: float = 0.01, repeats: int = 5) -> Row:
    """Code the positions of the largest entries; within 1% and 16 bytes of ideal."""
    payload, _ = fll.TopK(fraction=fraction).encode(x, {}, fll.rng.stream(0))
    indices = payload.tensor("indices")
    data = encode_indices(indices, x.numel())
    ideal = index_set_bytes(indices.numel(), x.numel())
    return Row(
        f"index set of topk(fraction={fraction}); log2 C(d, k) = {ideal:,.0f} bytes",
        len(data),
        x.numel(),
        None,
        best_ms(lambda: encode_indices(indices, x.numel()), repeats),
        best_ms(lambda: decode_indices(data, x.numel()), repeats),
        1.01 * ideal + 16.0,
    )


def vector_rows(repeats: int = 5, device: str = "cpu") -> Iterator[Row]:
    """Give the rows of the Gaussian vector."""
    x = gaussian(device)
    yield index_set(x, repeats=repeats)
    for text, bar in (
        ("topk(fraction=0.01) >> natural()", 13_600),
        ("topk(fraction=0.01) >> natural_stochastic()", None),
        ("topk(fraction=0.01) >> f16()", 32_000),
        ("randk(fraction=0.01)", None),
        ("natural()", None),
        ("sparse_dithering(nu=0.1)", 2.75 * D / 8),
        ("sparse_dithering_unbiased(omega=0.25)", 2.2 * D / 8),
    ):
        yield measure(text, x, bar, repeats=repeats)


def matrix_rows(repeats: int = 5, device: str = "cpu") -> Iterator[Row]:
    """Give the rows of the matrix; a factor of rank 4 has 4 x 2048 numbers."""
    x = harmonic_matrix(device=device)
    bar = 4 * 2048 * 4 + 64
    yield measure("svd(rank=4)", x, bar, 1.005 * OPTIMUM_RANK_4, repeats=1)
    yield measure("rsvd(rank=4)", x, bar, 1.05 * OPTIMUM_RANK_4, repeats=repeats)
    yield measure("powersgd(rank=4)", x, bar, repeats=repeats)
    text, warm = "powersgd(rank=4)", 1.05 * OPTIMUM_RANK_4
    yield measure(text, x, bar, warm, warm_rounds=10, repeats=repeats)
    for text, bar_bytes, bar_nmse in (
        ("powersgd(rank=4) >> sparse_dithering(nu=0.005)", 5_500, 0.137),
        ("powersgd(rank=10) >> sparse_dithering(nu=0.035)", 9_000, 0.075),
    ):
        yield measure(text, x, bar_bytes, bar_nmse, warm_rounds=10, repeats=repeats)
        text = text.replace("powersgd", "rsvd")
        yield measure(text, x, bar_bytes, bar_nmse, repeats=repeats)
    for text in (
        "powersgd(rank=4) >> f16()",
        "powersgd(rank=4) >> sparse_dithering(nu=0.001)",
    ):
        yield measure(text, x, warm_rounds=10, repeats=repeats)


def show(title: str, rows: list[Row], topk_ms: float, console: Console) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    table.add_column("compressor")
    for column in ("bytes", "bar", "bits/entry", "NMSE", "bar", "encode ms"):
        table.add_column(column, justify="right")
    table.add_column("/ torch.topk", justify="right")
    table.add_column("decode ms", justify="right")
    table.add_column("")
    for row in rows:
        verdict = "" if row.bar_bytes is None and row.bar_nmse is None else "ok"
        table.add_row(
            row.name,
            f"{row.size_bytes:,}",
            "" if row.bar_bytes is None else f"{row.bar_bytes:,.0f}",
            f"{row.bits_per_entry:.4f}",
            "" if row.nmse is None else f"{row.nmse:.4f}",
            "" if row.bar_nmse is None else f"{row.bar_nmse:.4f}",
            f"{row.encode_ms:.1f}",
            f"{row.encode_ms / topk_ms:.1f}",
            f"{row.decode_ms:.1f}",
            "[red]missed[/red]" if row.missed else verdict,
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes")
    parser.add_argument("--device", default="cpu", help="of torch (%(default)s)")
    device = parser.parse_args(arguments).device
    console = Console(width=None if sys.stdout.isatty() else 160)
    x = gaussian(device).abs()
    topk_ms = best_ms(lambda: torch.topk(x, D // 100, sorted=False))
    threads = torch.get_num_threads()
    console.print(
        f"torch.topk of 1% of {D:,}: {topk_ms:.1f} ms on {device}, {threads} threads; "
        "encode is to bytes, decode from bytes to a dense tensor"
    )
    vectors, matrices = (
        list(vector_rows(device=device)),
        list(matrix_rows(device=device)),
    )
    show(f"{D:,} Gaussian numbers", vectors, topk_ms, console)
    title = f"1024 x 1024, singular values 1/i; rank 4 at best {OPTIMUM_RANK_4}"
    show(title, matrices, topk_ms, console)
    missed = [row.name for row in (*vectors, *matrices) if row.missed]
    for name in missed:
        console.print(f"[red]missed its bar:[/red] {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

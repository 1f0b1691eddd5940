"""Tables as aligned text, for terminals and files alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..types import Contractive, Exact, Guarantee, NoGuarantee, Unbiased
from .measuring import Row

_MAX_WIDTH = 60  # of a column of words


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Align columns; those in ``left`` hold words, the others numbers."""
    lines = [list(head), *map(list, rows)]
    for line in lines:
        for i in left:
            line[i] = _cut(" ".join(line[i].split()))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WIDTH else text[: _MAX_WIDTH - 4] + " ..."


def describe(guarantee: Guarantee) -> str:
    """Say in words what is guaranteed."""
    match guarantee:
        case Exact():
            return "exact"
        case Unbiased(zeta):
            return f"unbiased, zeta = {zeta:.5g}"
        case Contractive(delta) if delta > 0.999:
            return f"contractive, 1 - delta = {1.0 - delta:.2g}"
        case Contractive(delta):
            return f"contractive, delta = {delta:.4g}"
        case NoGuarantee(reason):
            return f"none: {reason}"


def method_table(rows: Iterable[Row]) -> str:
    """Guarantee and wire cost of each method."""
    head = ("compressor", "guarantee", "bytes", "bits/entry")
    return table(
        head,
        [
            (row.text, _guarantee(row), _count(row.size_bytes), _bits(row))
            for row in rows
        ],
        left=(0, 1),
    )


def rate_table(rows: Iterable[Row]) -> str:
    """Bytes, error and time of each method, the fewest bytes first."""
    head = (
        *("compressor", "bytes", "bits/entry", "NMSE", "encode ms", "decode ms"),
        *("bits/bound", ""),
    )
    lines = []
    for row in sorted(rows, key=lambda row: row.size_bytes or math.inf):
        times = (f"{row.encode_ms:.1f}", f"{row.decode_ms:.1f}")
        if row.size_bytes is None:
            times = ("", "")
        error = "" if row.size_bytes is None else f"{row.nmse:.4g}"
        share = f"{row.efficiency:.3f}" if math.isfinite(row.efficiency) else ""
        lines.append(
            (
                *(row.text, _count(row.size_bytes), _bits(row), error),
                *(*times, share, row.refusal),
            )
        )
    return table(head, lines, left=(0, 7))


def _guarantee(row: Row) -> str:
    if row.guarantee is None or row.size_bytes is None:
        return f"refused: {row.refusal}"
    return describe(row.guarantee)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _bits(row: Row) -> str:
    return f"{row.bits_per_entry:.4f}" if math.isfinite(row.bits_per_entry) else ""

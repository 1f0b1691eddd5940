"""What compression costs: ``python -m fl_lowrank``.

::

    python -m fl_lowrank --shape 1024,1024           all compressors on that shape
    python -m fl_lowrank update.npy                  rate and distortion on a tensor
    python -m fl_lowrank model.pt --key fc.weight    ... of a dictionary
    python -m fl_lowrank --model update.pt --uplink "topk(fraction=0.01) >> natural()"
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch

from .errors import CompressionError, InputError
from .model import layout_of
from .report import (
    catalogue,
    largest,
    measure,
    method_table,
    model_report,
    rate_table,
    read_tensors,
)
from .rng import stream
from .spec import parse
from .types import Shape

MAX_ENTRIES = 1 << 28


def _shape(text: str) -> Shape:
    try:
        shape = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        shape = (-1,)
    if min(shape, default=1) < 0 or math.prod(shape) > MAX_ENTRIES:
        msg = (
            f"expected sizes such as 1024,1024 with at most {MAX_ENTRIES:,} entries, "
            f"found {text!r}"
        )
        raise argparse.ArgumentTypeError(msg)
    return shape


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fl_lowrank",
        description="Guarantees, bytes and errors of all compressors, on Gaussian "
        "numbers of a shape, on a tensor from a file, or on a whole model.",
    )
    add = parser.add_argument
    add("file", nargs="?", help="a .npy or .pt file: a rate-distortion table of it")
    add("--key", help="which tensor of a dictionary; the largest one if not given")
    add("--shape", type=_shape, default=(1024, 1024), metavar="M,N",
        help="shape of the Gaussian numbers (1024,1024)")  # fmt: skip
    add("--compressor", action="append", metavar="TEXT", default=[],
        help="show these alone; may be repeated")  # fmt: skip
    add("--add", action="append", metavar="TEXT", default=[],
        help="show these besides all others; may be repeated")  # fmt: skip
    add("--repeats", type=int, default=3, metavar="N",
        help="times are the best of so many (%(default)s)")  # fmt: skip
    add("--model", metavar="FILE", help="a .pt file with an update: bytes per tensor")
    add("--uplink", metavar="RULES", default="topk(fraction=0.01) >> natural()",
        help="compressor or rules for --model (%(default)s)")  # fmt: skip
    add("--gaussian", action="store_true",
        help="with --model: Gaussian numbers in place of those of the file, which "
        "holds parameters and no update")  # fmt: skip
    return parser


def _methods(options: argparse.Namespace, every_rate: bool) -> list[str]:
    texts = [*(options.compressor or catalogue(every_rate)), *options.add]
    for text in texts:
        parse(text)  # a mistake is told before anything is measured
    return texts


def _show_shape(options: argparse.Namespace) -> str:
    x = stream(0, "shape").normal(*options.shape)
    rows = [measure(c, x) for c in _methods(options, every_rate=False)]
    title = f"Gaussian numbers, float32, shape {options.shape}: {4 * x.numel():,} bytes"
    return f"{title}\n\n{method_table(rows)}"


def _show_file(options: argparse.Namespace) -> str:
    name, x = largest(read_tensors(options.file), options.key)
    if not bool(torch.isfinite(x).all()):
        msg = f"report: expected finite numbers in {name!r}, found NaN or infinity"
        raise InputError(msg)
    methods = _methods(options, every_rate=True)
    rows = [measure(c, x, options.repeats) for c in methods]
    dtype = str(x.dtype).removeprefix("torch.")
    title = f"{name}: {dtype}, shape {tuple(x.shape)}, {x.nbytes:,} bytes"
    note = (
        "bits/bound: bits over (d/2) log2(1/NMSE), the least for Gaussian numbers; "
        "below 1 where a tensor has structure that a method finds."
    )
    return f"{title}\n\n{rate_table(rows)}\n\n{note}"


def _show_model(options: argparse.Namespace) -> str:
    tensors = read_tensors(options.model)
    report = model_report(
        layout_of(tensors) if options.gaussian else tensors, options.uplink
    )
    return f"{options.uplink}\n\n{report}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table; gives the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.file and options.model:
        parser.error("give a file or --model, not both")
    try:
        if options.model:
            print(_show_model(options))
        elif options.file:
            print(_show_file(options))
        else:
            print(_show_shape(options))
    except CompressionError as error:
        print(f"python -m fl_lowrank: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

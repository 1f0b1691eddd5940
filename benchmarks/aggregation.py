"""What it takes a server to average 100 replies: Flower's dense ones, and compressed.

``python -m benchmarks.aggregation`` makes 100 updates of the 1,474,550-parameter
network and averages them with Flower's ``FedAvg``, dense, and as compressed replies
with what `Compressed` does between the grid and its inner strategy: reading (entropy
decoding and checks) and adding, each alone, and both for one reply after the other as
a server does, which takes longer, since each drives the other out of the cache. Times
are the processor's on one thread, the best of several turns. The peak is of a process
that averages compressed replies with nothing else, beyond what it held with the replies
alone, in float32 models: until the mean is handed to Flower's strategy, and with what
that does with it. The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.table import Table

import fl_lowrank as fll
from fl_lowrank import feedback as feedbacks
from fl_lowrank.envelope import STYPE, Reply
from fl_lowrank.errors import CompressionError
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.scheduled import parse_scheduled
from fl_lowrank.summing import ReadUpdate, UpdateSum
from simulations.loopback.transport import become_server
from strategies import Ledger
from strategies.aggregation import Round
from strategies.norms import ExactLimit, NormLimit
from strategies.turns import Book
from strategies.uplink import Uplink

from .cnn_client import cnn_arrays, quiet
from .speed import best_in_turns

NUM_CLIENTS = 100
#: Least speed-up over dense averaging, as a server does it and of adding alone.
BARS: dict[str, tuple[float, float] | None] = {
    "topk(fraction=0.01)": (3.0, 10.0),
    "topk(fraction=0.01) >> natural()": None,
    "powersgd(rank=4)": None,
    "sketch(fraction=0.01, capacity=0.3)": None,
    "sparse_dithering(nu=0.1)": None,
}
MAX_MODELS = 3.0
#: Different messages; the others repeat them, which costs the same time.
_NUM_DIFFERENT = 10
_PARTS = ("read", "add", "both")


@dataclass(frozen=True)
class Row:
    """One method; times in milliseconds of the processor for all replies."""

    text: str
    read_ms: float
    add_ms: float
    both_ms: float
    dense_ms: float
    peak_models: float
    peak_with_flower: float

    @property
    def ratios(self) -> tuple[float, float]:
        """Speed-up with reading, and of adding alone."""
        return self.dense_ms / self.both_ms, self.dense_ms / self.add_ms

    @property
    def missed(self) -> bool:
        """Whether a bar is missed."""
        bars = BARS.get(self.text)
        if bars is None:
            return False
        too_slow = any(r < bar for r, bar in zip(self.ratios, bars, strict=True))
        return too_slow or self.peak_models > MAX_MODELS


def update(seed: int) -> dict[str, torch.Tensor]:
    """Draw an update of the network."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) for name, t in LAYOUT.items()
    }


LAYOUT = layout_of(cnn_arrays().to_torch_state_dict())
MODEL_BYTES = 4 * sum(t.numel for t in LAYOUT.values())


def replies(text: str) -> list[bytes]:
    """Compress the clients' updates."""
    codec = ModelCodec(text)
    different = [
        codec.encode(update(i), {}, fll.rng.stream(1, i))[0]
        for i in range(_NUM_DIFFERENT)
    ]
    return different * (NUM_CLIENTS // _NUM_DIFFERENT)


def message_of(client: int, arrays: ArrayRecord) -> Message:
    """Give a client's reply."""
    metrics = MetricRecord({"num-examples": 100})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    request = Message(RecordDict(), dst_node_id=client + 1, message_type="train")
    return Message(content, reply_to=request)


def dense_replies() -> list[Message]:
    """Give the clients' models as Flower's own messages."""
    return [
        message_of(i, ArrayRecord(update(i % _NUM_DIFFERENT)))
        for i in range(NUM_CLIENTS)
    ]


def read(sums: UpdateSum, data: Sequence[bytes]) -> list[ReadUpdate]:
    """Decode entropy codes and check."""
    return [_good(found) for found in sums.read_all(data)]


def _good(found: ReadUpdate | CompressionError) -> ReadUpdate:
    if isinstance(found, CompressionError):
        raise found
    return found


def add(sums: UpdateSum, messages: Sequence[ReadUpdate]) -> None:
    """Add what has been read."""
    for i, message in enumerate(messages):
        sums.put(str(i), message)
    sums.close()


def read_and_add(data: Sequence[bytes]) -> None:
    """Do both with one reply after the other, as a server does in each round."""
    sums = UpdateSum(LAYOUT)
    for i, found in enumerate(sums.read_all(data)):
        sums.put(str(i), _good(found))
    sums.close()


class Noting(FedAvg):
    """Notes the peak of memory before its own work, in bytes."""

    peak = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `FedAvg`."""
        self.peak = _peak_bytes()
        return super().aggregate_train(server_round, replies)


def server_round(text: str, inner: FedAvg) -> Callable[[], object]:
    """Prepare what `Compressed` does with the replies of a round."""
    book = Book(feedbacks.named("ef"))
    arrays = ArrayRecord(update(0))
    valid = []
    for i, lossy in enumerate(replies(text)):
        ticket, _ = book.open(str(i))
        exact, _ = ModelCodec("identity()").encode({}, {}, fll.rng.stream(0))
        answer = Reply(book.fid, book.epoch, ticket, 0, i + 1, 0.0, False, lossy, exact)
        packed = answer.pack()
        array = Array("uint8", (len(packed),), STYPE, packed)
        valid.append((str(i), message_of(i, ArrayRecord({"fl-lowrank": array}))))
    uplink = Uplink(parse_scheduled(text), "ef", "num-examples", ())
    limits = NormLimit(1000.0), ExactLimit(1000.0)
    round_ = Round(1, arrays, uplink, 1.0, *limits)

    def run() -> object:
        accepted = round_.collect(book, Ledger(), valid, singly=False)
        assert len(accepted) == NUM_CLIENTS
        return round_.average(inner, book, accepted, [])

    return run


def peak_models(text: str) -> tuple[float, float]:
    """Run a server's round; gives its peaks beyond the replies' memory, in models.

    The first is until Flower's strategy gets the mean, the second of all.
    """
    torch.set_num_threads(1)
    become_server(1)
    inner = Noting()
    run = server_round(text, inner)
    before = _peak_bytes(reset=True)
    run()
    return (inner.peak - before) / MODEL_BYTES, (_peak_bytes() - before) / MODEL_BYTES


def _peak_bytes(*, reset: bool = False) -> int:
    """Give the most memory this process has had, since the last reset."""
    if reset:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure(texts: Sequence[str], turns: int) -> list[Row]:
    """Time the methods, and measure their memory in processes of their own."""
    become_server(1)
    dense = dense_replies()
    actions: dict[str, Callable[[], object]] = {
        "dense": lambda: FedAvg().aggregate_train(1, dense)
    }
    for text in texts:
        data, sums = replies(text), UpdateSum(LAYOUT)
        messages = read(sums, data)
        actions[f"read {text}"] = partial(read, sums, data)
        actions[f"add {text}"] = partial(add, sums, messages)
        actions[f"both {text}"] = partial(read_and_add, data)
    best = best_in_turns(actions, turns)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.map(peak_models, texts, chunksize=1)
    return [
        Row(text, *(best[f"{a} {text}"] for a in _PARTS), best["dense"], *peak)
        for text, peak in zip(texts, peaks, strict=True)
    ]


def show(rows: Sequence[Row], console: Console) -> None:
    """Print rows as a table."""
    table = Table(title=f"{NUM_CLIENTS} dense replies: {rows[0].dense_ms:.0f} ms")
    table.add_column("compressor")
    for column in (
        "read ms",
        "add ms",
        "both ms",
        "speed-up",
        "of adding",
        "peak, models",
        "+ Flower",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        total, adding = row.ratios
        mark = "[red]" if row.missed else ""
        table.add_row(
            f"{mark}{row.text}",
            f"{row.read_ms:.0f}",
            f"{row.add_ms:.0f}",
            f"{row.both_ms:.0f}",
            f"{total:.1f}",
            f"{adding:.1f}",
            f"{row.peak_models:.2f}",
            f"{row.peak_with_flower:.2f}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregation")
    parser.add_argument("--methods", nargs="+", default=list(BARS), help="texts")
    parser.add_argument("--turns", type=int, default=5, help="of which the best counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 100)
    with quiet():
        rows = measure(options.methods, options.turns)
    show(rows, console)
    missed = [row.text for row in rows if row.missed]
    if missed:
        console.print(f"missed: {', '.join(missed)}", style="red")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

"""Bytes and texts from strangers take no more memory than the layout allows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import wire
from fl_lowrank.framing import open_sealed, seal
from fl_lowrank.types import Coding

from .hostility import (
    ALL,
    FORGED,
    INDUCED,
    LOWRANK,
    POWERS,
    SEEDED,
    SHRUNK,
    SPARSE,
    body_of,
    equal_symbols,
    field,
    honest,
    integers,
    mutated,
    no_bits,
    raw,
    sketched,
)

_CHILD = """
import json, resource, sys
import torch
import fl_lowrank as fll
from fl_lowrank.errors import WireError
from fl_lowrank.wire import TensorLayout

torch.set_num_threads(1)
bytes_allowed, warm, jobs = json.load(sys.stdin)

def answer(job):
    data, shape, dtype = job
    expect = TensorLayout(tuple(shape), getattr(torch, dtype))
    try:
        fll.decode(fll.unpack(bytes.fromhex(data), expect))
    except WireError:
        return "refused"
    except BaseException as error:
        return type(error).__name__
    return "read"

for job in warm:
    assert answer(job) == "read"
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + bytes_allowed
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(json.dumps([answer(job) for job in jobs]))
"""
Job = tuple[str, tuple[int, ...], str]


def job(data: bytes, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Job:
    return data.hex(), shape, str(dtype).removeprefix("torch.")


def answers_within(bytes_allowed: int, jobs: list[Job]) -> list[str]:
    """Read messages in a process that may not map more memory than allowed.

    Honest messages are read before the limit holds, so that libraries are loaded. What
    was freed goes back to the system: the allocator would keep a hundred MiB of it, or
    not, as it happens, and less would be left for the message after it.
    """
    warm = [job(data, e.shape, e.dtype) for data, e in honest()]
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([bytes_allowed, warm, jobs]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(fll.__file__).parents[1],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
    )
    assert child.returncode == 0, child.stderr
    answers: list[str] = json.loads(child.stdout)
    return answers


linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the limit of a process's memory is Linux's"
)


@linux
def test_small_layouts_take_little_memory_whatever_is_announced() -> None:
    """64 MiB for all forged messages and 1,500 mutations of tiny tensors.

    The last job is honest and large: it must fail under this limit, which shows
    that the limit holds.
    """
    draw = random.Random(4)
    messages = honest()
    bodies = [open_sealed(data).rest() for data, _ in messages]
    jobs = [job(seal(body), shape) for body, shape in FORGED.values()]
    for i in range(1_500):
        body = mutated(bodies[i % len(bodies)], bodies, draw)
        expect = messages[i % len(bodies)][1]
        jobs.append(job(seal(body), expect.shape, expect.dtype))
    many = 1 << 25
    large = body_of((many,), POWERS, integers(0), equal_symbols(many, 0), no_bits())
    *answers, control = answers_within(64 << 20, [*jobs, job(seal(large), (many,))])
    assert set(answers) == {"read", "refused"}
    assert set(answers[: len(FORGED)]) == {"refused"}
    assert control not in ("read", "refused")


def tree(numel: int, depth: int) -> bytes:
    """Nest low-rank payloads whose leaves cost few bytes and decode to many entries."""
    if depth == 0:
        return body_of(
            (numel,), POWERS, integers(0), equal_symbols(numel, 0), no_bits()
        )
    half = field(Coding.NESTED, tree(numel, depth - 1))
    return body_of((numel,), LOWRANK, half, half)


@linux
def test_trees_of_payloads_do_not_multiply_memory() -> None:
    """At most 128 bytes an entry of the layout, for the worst messages known.

    A tree of 2^8 leaves, each as large as the layout, would take 2,000 bytes.
    """
    numel = 1 << 20
    deep = body_of((numel,), POWERS, integers(0), equal_symbols(numel, 0), no_bits())
    chain = deep
    for _ in range(wire.MAX_DEPTH):
        chain = body_of((numel,), SHRUNK, raw(0.5), field(Coding.NESTED, chain))
    positions = deep
    for _ in range(wire.MAX_DEPTH):
        positions = body_of((numel,), SPARSE, ALL, field(Coding.NESTED, positions))
    seeded = body_of((numel,), SEEDED, integers(1), raw(1.0))
    wide = tree(numel, wire.MAX_DEPTH)
    core = sketched((numel,), (0, 0), ALL, numel // 3 * 3)
    pair = body_of((numel,), INDUCED, *[field(Coding.NESTED, deep)] * 2)
    pairs = body_of((numel,), INDUCED, *[field(Coding.NESTED, pair)] * 2)
    bodies = [deep, chain, positions, seeded, pair, pairs, wide, core]
    answers = answers_within(128 * numel, [job(seal(b), (numel,)) for b in bodies])
    assert answers == ["read"] * 5 + ["refused"] * 3


@linux
def test_settings_cannot_make_a_client_busy_or_full() -> None:
    """Huge settings are refused, or bounded by the tensor: 64 MiB, half a minute."""
    code = """
import resource, torch, fl_lowrank as fll
from fl_lowrank.errors import CompressionError
torch.set_num_threads(1)
x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
def run(text):
    try:
        c = fll.parse(text)
        p, _ = c.encode(x, c.init(x.shape), fll.rng.stream(0))
        fll.decode(fll.unpack(fll.pack(p)))
        c.guarantee(x.shape)
    except CompressionError:
        pass
for text in ("rsvd(rank=2)", "svd(rank=2)", "powersgd(rank=2)", "topk(k=9)"):
    run(text)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
huge = "1" + "0" * 30
for text in (
    f"topk(k={huge})", f"randk(k={huge})", f"svd(rank={huge})",
    f"powersgd(rank={huge})",
    f"rsvd(rank=2, oversampling={huge})", f"rsvd(rank=2, num_iterations={huge})",
    f"powersgd(rank=2, num_iterations={huge})", "rsvd(rank=1000000000)",
    f"by_size(threshold={huge}, small=f16(), large=f16())",
    "sparse_dithering(nu=1e-300)", "sparse_dithering_unbiased(omega=1e-300)",
    "sparse_dithering_unbiased(omega=1e300)", "topk(fraction=1e-300)",
    f"sketch(k={huge})", f"sketch(k=1, bits={huge})", f"sketch(k=1, seed={huge})",
    "topk(k=" + "9" * 4000 + ")", f"topk(fraction={huge})",
    f"svd(floats={huge})", f"atomo(rank={huge})", f"lowrank_unbiased(rank={huge})",
    "rsvd(energy=0.9999999)", f"rsvd(energy=0.5, oversampling={huge})",
    f"tucker(rank={huge}, order={huge})", f"tensor_train(accuracy=1e-6, order={huge})",
    "spherical(alpha=1e-300)", f"spherical(block={huge})",
    "spherical(alpha=0.01, block=64)", "spherical_unbiased(alpha=0.99, block=64)",
    "threshold(relative=1e-300)", "threshold(value=1e300)",
    f"flat(inner=powersgd(rank={huge}))", "budget(bytes=" + "9" * 4000 + ")",
    *(f'budget(bytes={n}, method="{m}")' for n in (1, 99, 10**9, huge)
      for m in ("dither", "topk", "lowrank", "best")),
):
    run(text)
"""
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(fll.__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr

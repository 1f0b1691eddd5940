"""Texts from a hostile server: no setting makes a client busy, full, or crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import feedback
from fl_lowrank.compressors import COMPRESSORS
from fl_lowrank.envelope import Request
from fl_lowrank.errors import SettingError, SpecError, WireError
from fl_lowrank.spec import MAX_RULES
from fl_lowrank.syntax import MAX_DEPTH

from ..instances import INSTANCES

_CHILD = """
import json, sys, time, torch
from dataclasses import fields
import fl_lowrank as fll
from fl_lowrank.errors import CompressionError
from fl_lowrank.types import format_setting
from tests.fl_lowrank.fuzzing import limit_memory
from tests.instances import INSTANCES

torch.set_num_threads(1)
INTS = [0, -1, 1, 2, 65, 2**16, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
        10**30, 10**400]
FLOATS = [0.0, -1.0, 5e-324, 1e-300, 1e-30, 1e-9, 0.01, 0.5, 1.0 - 2**-53, 1.0,
          1 + 2**-52, 2.0, 7.9, 1e9, 1e30, 1e300, 1.7e308]
x = torch.randn(24, 18, generator=torch.Generator().manual_seed(0))

def answer(text):
    begin = time.process_time()
    try:
        c = fll.parse(text)
        c.guarantee(x.shape)
        payload, _ = c.encode(x, c.init(x.shape), fll.rng.stream(0))
        fll.decode(fll.unpack(fll.pack(payload)))
    except CompressionError:
        found = "refused"
    except BaseException as error:
        return f"{text}: {error!r}"
    else:
        found = "obeyed"
    seconds = time.process_time() - begin
    return found if seconds < 10.0 else f"{text}: took {seconds} s"

texts = {}
for c in {type(c): c for c in INSTANCES if c.name != "then"}.values():
    given = {f.name: getattr(c, f.name) for f in fields(c)}
    for f in fields(c):
        takes = {part.strip() for part in str(f.type).split("|")}
        extremes = INTS if "int" in takes else FLOATS + INTS if "float" in takes else []
        for extreme in extremes:
            alone = {f.name: extreme}
            for settings in (given | alone, alone):
                parts = (
                    f"{k}={format_setting(v)}"
                    for k, v in settings.items() if v is not None
                )
                texts[f"{c.name}({', '.join(parts)})"] = c.name
for c in INSTANCES:
    answer(str(c))  # so that libraries are loaded
limit_memory(64 << 20)
answers = {text: answer(text) for text in texts}
print(json.dumps([[texts[text], found] for text, found in answers.items()]))
"""


def test_extreme_numbers() -> None:
    """Every number of every compressor, at the ends of all ranges that there are.

    Each on a tensor of 432 entries, within 64 MiB and 10 seconds: a client refuses or
    obeys.
    """
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout)
    wrong = [found for _, found in answers if found not in ("refused", "obeyed")]
    assert not wrong, "\n".join(wrong[:20])
    for answer in ("refused", "obeyed"):
        assert sum(found == answer for _, found in answers) > 300
    numeric = {name for name, _ in answers}
    assert {"topk", "sketch", "md_greedy", "spherical", "budget", "eden"} <= numeric
    assert len(numeric) > 25


@pytest.mark.parametrize(
    "text",
    [
        "md_greedy(k=1, steps=1001)",
        "md_weighted_greedy(k=1, refresh=1048577)",
        "md_stochastic(k=1, steps=" + "9" * 30 + ")",
    ],
)
def test_gradients_that_a_client_must_take_are_bounded(text: str) -> None:
    with pytest.raises(SettingError, match="steps of 2 to 1000"):
        fll.parse(text)


def test_searches_that_a_client_must_make_are_bounded() -> None:
    """What is quick for a small tensor may take a day for a large one."""
    for name in ("spherical", "spherical_unbiased"):
        compressor = fll.parse(f"{name}(alpha=0.19, block=16)")
        compressor.guarantee((1000,))
        with pytest.raises(SettingError, match="choose a smaller block"):
            compressor.guarantee((1000, 10000))
        with pytest.raises(SettingError, match="choose a smaller block"):
            compressor.encode(torch.zeros(10**7), {}, fll.rng.stream(0))
    fll.parse("spherical(alpha=0.5, block=8)").guarantee((10**9,))


CHAINED = [
    *("powersgd(rank=1)", "svd(rank=1)", "tucker(rank=1)", "tensor_train(rank=2)"),
    *("topk(fraction=0.9)", "randk(fraction=0.9)", "lowrank_unbiased(ratio=0.9)"),
]
NESTED = [
    *("shrunk(inner={})", "rotated(inner={})", "flat(inner={})"),
    "by_size(threshold=1, small=f16(), large={})",
]


def deepest() -> Iterator[str]:
    for text in CHAINED:
        yield " >> ".join([text] * (MAX_DEPTH + 1))
    for text in NESTED:
        for inner in ("identity()", "randk(k=1)", "powersgd(rank=2)"):
            whole = inner
            for _ in range(MAX_DEPTH):
                whole = text.format(whole)
            yield whole


@pytest.mark.parametrize("text", list(deepest()))
def test_the_deepest_texts_take_no_long_work(text: str) -> None:
    """Parts of parts do not multiply: 10 s for a small matrix would be far off."""
    begin = time.process_time()
    x = fll.rng.stream(0).normal(64, 48)
    try:
        compressor = fll.parse(text)
        compressor.guarantee(x.shape)
        payload, _ = compressor.encode(x, compressor.init(x.shape), fll.rng.stream(1))
        assert fll.decode(fll.unpack(fll.pack(payload))).shape == x.shape
    except SettingError:
        assert "shrunk" in text
    assert time.process_time() - begin < 10.0


def test_the_number_of_rules_is_bounded() -> None:
    assert len(fll.parse_rules("; ".join(["a: f16()"] * MAX_RULES))) == MAX_RULES
    with pytest.raises(SpecError, match=f"expected at most {MAX_RULES}, found"):
        fll.parse_rules("; ".join(["a: f16()"] * (MAX_RULES + 1)))


def test_the_number_of_exact_patterns_is_bounded() -> None:
    request = Request(1, bytes(16), 1, (1, 1), 0, 0, 1.0, 1.0, exact=("*a",) * 256)
    data = request.pack()
    assert Request.unpack(data) == request
    with pytest.raises(SettingError, match="at most 256 patterns"):
        replace(request, exact=("*a",) * 257).pack()
    body = data[:-4] + b"\0*a"
    with pytest.raises(WireError, match="makes no sense"):
        Request.unpack(body + _crc(body))


def test_every_number_of_a_feedback_is_checked() -> None:
    obeyed = 0
    for name in feedback.FEEDBACKS:
        for key in ("momentum", "rate"):
            for number in ("0", "-1", "5e-324", "0.5", "1", "1.1", "1e999", "9" * 150):
                try:
                    found = feedback.named(f"{name}({key}={number})")
                except SettingError:
                    continue
                obeyed += 1
                assert 0.0 < getattr(found, key) <= 1.0
    assert obeyed == 9  # three numbers for each of three that have one
    with pytest.raises(SettingError):
        feedback.named("diana(rate=0." + "0" * 300 + "1)")


def test_every_compressor_is_among_the_instances() -> None:
    assert {c.name for c in INSTANCES} >= COMPRESSORS.keys()


def _crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")

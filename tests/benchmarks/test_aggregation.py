"""The command that measures aggregation; its bars are for idle machines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import aggregation
from benchmarks.aggregation import Row

TOPK = "topk(fraction=0.01)"


def row(read_and_add_ms: float, add_ms: float, peak: float, text: str = TOPK) -> Row:
    return Row(text, 30.0, add_ms, read_and_add_ms, 150.0, peak, 9.0)


def test_times_and_memory_are_measured() -> None:
    (found,) = aggregation.measure([TOPK], turns=1)
    assert 0 < min(found.add_ms, found.read_ms) < found.both_ms
    assert found.dense_ms > 0
    assert 0 < found.peak_models <= found.peak_with_flower


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([row(50.0, 15.0, 3.0)], 0),
        ([row(51.0, 15.0, 3.0)], 1),
        ([row(50.0, 16.0, 3.0)], 1),
        ([row(50.0, 15.0, 3.1)], 1),
        ([row(99.0, 99.0, 9.0, "powersgd(rank=4)"), row(50.0, 15.0, 3.0)], 0),
    ],
)
def test_a_missed_bar_is_named(
    rows: Sequence[Row],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(aggregation, "measure", lambda *_: rows)
    assert aggregation.main([]) == code
    assert (f"missed: {TOPK}" in capsys.readouterr().out) == bool(code)

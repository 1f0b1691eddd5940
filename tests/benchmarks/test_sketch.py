"""The bars of the sketch, at full size, and the command that prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from benchmarks import sketch


def test_sixteen_clients_of_a_million_entries_are_summed_exactly() -> None:
    """The largest 1% each, correlation 0.5; capacity from the round before."""
    row = sketch.measure(0.5, repeats=1)
    assert row.exact
    assert row.kept == 10_000
    assert 9.5 < row.union / row.kept < 10.5
    assert row.cells >= 1.3 * row.union + 64
    assert row.off_plain < 1e-6
    # A client pays for the sum: its own message is larger than a plain one.
    assert 1.5 < row.client_bytes / row.client_plain_bytes < 2.5
    # The sum is far smaller than what it stands for, and no smaller than decoded.
    assert row.sum_plain_bytes < row.sum_bytes < 0.65 * row.all_plain_bytes


def test_sums_with_too_few_cells_are_refused() -> None:
    ratios = (1.0, 1.2, 1.3)
    tried = list(sketch.attempts(0.5, 100_000, 16, ratios=ratios))
    assert [attempt.missed for attempt in tried] == [False] * 3
    assert [attempt.reported is None for attempt in tried] == [False, False, True]
    assert all(attempt.union > 10_000 for attempt in tried)
    assert tried[1].off > 0.1
    assert tried[2].off == 0.0


def test_what_is_hidden_is_a_miss() -> None:
    few = sketch.Attempt(100, 120, 40, 40, 0.5, 9)
    assert not few.missed
    assert dataclasses.replace(few, reported=None).missed
    assert dataclasses.replace(few, reported=39).missed
    assert dataclasses.replace(few, unpeeled=0, reported=None, off=0.0).missed
    enough = sketch.Attempt(100, 130, 0, None, 0.0, 9)
    assert not enough.missed
    assert dataclasses.replace(enough, off=1e-9).missed


ROW = sketch.Row(0.5, 10, 100, 133, 20.0, 9.0, 12345, 99, 160, 1.0, 2.0, True, 1e-8)


@pytest.mark.parametrize(
    ("exact", "reported", "code"), [(True, 40, 0), (False, 40, 1), (True, None, 1)]
)
def test_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exact: bool,
    reported: int | None,
    code: int,
) -> None:
    row = dataclasses.replace(ROW, exact=exact)

    def attempts() -> Iterator[sketch.Attempt]:
        yield sketch.Attempt(100, 120, 40, reported, 0.5, 9)

    monkeypatch.setattr(sketch, "measure", lambda correlation: row)
    monkeypatch.setattr(sketch, "attempts", attempts)
    assert sketch.main([]) == code
    printed = capsys.readouterr().out
    assert printed.count("12,345") == 4
    assert ("missed" in printed) == bool(code)

"""The command that measures speed; its bars are for idle machines and large tensors."""

from __future__ import annotations

import pytest

from benchmarks import speed


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets the threads of its process."""
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)


def test_what_is_missing_is_left_out() -> None:
    assert speed.exists("topk(fraction=0.01) >> natural()")
    assert not speed.exists("topk(fraction=0.01) >> nonsense()")
    assert {"ecsq(nmse=0.1)", "dither(nmse=0.1)"} <= set(
        filter(speed.exists, speed.BARS)
    )


def test_the_best_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 1.0, 1.1, 2.0, 2.2, 3.0, 3.4])
    monkeypatch.setattr("time.process_time", lambda: next(clock))
    calls: list[str] = []
    actions = {name: lambda n=name: calls.append(n) for name in "ab"}
    best = speed.best_in_turns(actions, 2)
    assert calls == ["a", "b", "a", "b"]
    assert best == pytest.approx({"a": 200.0, "b": 100.0})


def test_a_missed_bar_is_an_error() -> None:
    row = speed.Row("topk(fraction=0.01)", 4.0, 1.9, 10.0)
    assert row.ratio == pytest.approx(0.59)
    assert not row.missed
    assert speed.Row("topk(fraction=0.01)", 4.0, 2.1, 10.0).missed
    assert not speed.Row("natural()", 400.0, 200.0, 10.0).missed


def test_a_table_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = "ecsq(nmse=0.01)"
    code = speed.main(["--methods", text, "--sizes", "2000", "3000", "--turns", "1"])
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.count(text) == 2
    assert "3,000 entries" in printed


def test_topk_is_faster_than_sorting_everything() -> None:
    """A coarse form of its bar, on a busy machine: finding the largest is no sort."""
    (row,) = speed.measure(speed.gaussian(1 << 20), ["topk(fraction=0.01)"], 5)
    assert row.ratio < 2.0

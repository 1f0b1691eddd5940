"""The bars of budgets on a real update, and the command that prints them."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from benchmarks import allocation, real_models
from benchmarks.allocation import Row, Sent
from simulations.data.dataset import DATA_VARIABLE


def test_no_bar_is_missed_on_the_digits() -> None:
    update = real_models.real_update("digits-cnn")
    assert sum(x.numel() for x in update.values()) == 55_018
    measured = list(allocation.rows(update, ("topk", "dither")))
    assert len(measured) == 12
    assert {method for row in measured for method in row.bars} == {"topk", "dither"}
    for row in measured:
        for method, sent in row.budgets.items():
            assert sent.num_bytes <= row.reference.num_bytes
            assert not row.missed(method), f"{row.name}, {method}: {row.ratio(method)}"


@pytest.mark.skipif(
    not os.environ.get(DATA_VARIABLE), reason=f"{DATA_VARIABLE} names no data folder"
)
def test_no_bar_is_missed_on_fashion_mnist() -> None:
    update = real_models.real_update("cnn")
    for row in list(allocation.rows(update, ("dither",)))[:4]:
        assert not row.missed("dither"), f"{row.name}: {row.ratio('dither')}"


def test_updates_leave_out_what_travels_exactly() -> None:
    assert real_models.available("digits-cnn") == ["digits-cnn"]
    update = real_models.real_update("digits-cnn", seed=1)
    assert all(x.any() for x in update.values())
    again = real_models.real_update("digits-cnn", seed=1)
    assert all(torch.equal(update[name], again[name]) for name in update)


def test_one_step_for_all_is_one_step_for_all() -> None:
    """In units of the root mean square of everything; a constant is its own rms."""
    update = {"a": torch.full((30,), 3.0), "b": torch.full((10,), 1.0)}
    rms = (280 / 40) ** 0.5
    text = allocation.common_step(update, 1.5)
    assert text == f"a: ecsq(step={1.5 * rms / 3:.6g}); b: ecsq(step={1.5 * rms:.6g})"


def row(num_bytes: int = 100, nmse: float = 0.1, bar: float = 0.8) -> Row:
    budgets = {"dither": Sent(num_bytes, nmse, 1.0)}
    return Row("a reference", Sent(100, 0.2, 1.0), budgets, {"dither": bar})


def test_a_missed_bar_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not row().missed("dither")
    assert row(num_bytes=101).missed("dither")
    assert row(nmse=0.17).missed("dither")
    assert not dataclasses.replace(row(nmse=0.17), bars={}).missed("dither")
    monkeypatch.setattr(allocation, "real_update", lambda name: {"a": torch.ones(3)})
    monkeypatch.setattr(allocation, "rows", lambda update: [row()])
    assert allocation.main(["cnn"]) == 0
    assert "missed" not in capsys.readouterr().out
    monkeypatch.setattr(allocation, "rows", lambda update: [row(nmse=0.17)])
    assert allocation.main(["cnn"]) == 1
    printed = capsys.readouterr().out
    assert "missed: cnn, a reference, dither" in printed
    assert "0.850" in printed

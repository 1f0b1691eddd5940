"""The bars of bytes at d = 2^20, and the command that prints them."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import sizes


def test_no_bar_of_the_vector_is_missed() -> None:
    rows = list(sizes.vector_rows(repeats=1))
    barred = [row for row in rows if row.bar_bytes is not None]
    assert len(barred) == 5
    for row in barred:
        assert not row.missed, f"{row.name}: {row.size_bytes} of {row.bar_bytes:.0f}"


def test_no_bar_of_the_matrix_is_missed() -> None:
    x = sizes.harmonic_matrix(256)
    rows = [
        sizes.measure("rsvd(rank=4)", x, 4 * 512 * 4 + 64, repeats=1),
        sizes.measure("powersgd(rank=4)", x, 4 * 512 * 4 + 64, repeats=1),
        sizes.measure("powersgd(rank=4)", x, 4 * 512 * 4 + 64, None, 10, 1),
    ]
    assert not any(row.missed for row in rows)
    rsvd, cold, warm = (row.nmse or 0.0 for row in rows)
    assert 0.13 < rsvd < 0.145
    assert warm < 1.05 * rsvd < cold


def test_no_bar_of_coded_factors_is_missed() -> None:
    """At full size; the cold method alone, the warm one takes ten rounds."""
    x = sizes.harmonic_matrix()
    for text, bar_bytes, bar_nmse in (
        ("rsvd(rank=4) >> sparse_dithering(nu=0.005)", 5_500, 0.137),
        ("rsvd(rank=10) >> sparse_dithering(nu=0.035)", 9_000, 0.075),
    ):
        row = sizes.measure(text, x, bar_bytes, bar_nmse, repeats=1)
        assert not row.missed, f"{row.name}: {row.size_bytes} bytes, NMSE {row.nmse}"


def test_a_missed_bar_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = sizes.Row("x", 100, 1000, 0.1, 1.0, 1.0, bar_bytes=100, bar_nmse=0.1)
    assert not row.missed
    large = dataclasses.replace(row, size_bytes=101)
    far = dataclasses.replace(row, nmse=0.11)
    assert large.missed
    assert far.missed
    monkeypatch.setattr(sizes, "vector_rows", lambda device: [row])
    monkeypatch.setattr(sizes, "matrix_rows", lambda device: [row])
    assert sizes.main([]) == 0
    monkeypatch.setattr(sizes, "matrix_rows", lambda device: [far])
    assert sizes.main([]) == 1


def test_both_tables_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = sizes.Row("powersgd(rank=4)", 12_345, 1 << 20, 0.1, 1.0, 1.0, bar_bytes=1)
    monkeypatch.setattr(sizes, "vector_rows", lambda device: [row])
    monkeypatch.setattr(sizes, "matrix_rows", lambda device: [row])
    sizes.main([])
    printed = capsys.readouterr().out
    assert printed.count("12,345") == 2
    assert "missed its bar: powersgd(rank=4)" in printed

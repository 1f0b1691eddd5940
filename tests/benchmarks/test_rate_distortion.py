"""The bars of rates, and the command that prints them."""

from __future__ import annotations

import math

import pytest

import fl_lowrank as fll
from benchmarks import rate_distortion
from benchmarks.rate_distortion import Point
from benchmarks.updates import flattened, gaussian, real_update, student
from fl_lowrank.compressors import COMPRESSORS


def test_no_bar_is_missed() -> None:
    for name, draw in (("gaussian", gaussian), ("student", student)):
        x = draw(1 << 17)
        points = [
            rate_distortion.measure(t, x) for t in rate_distortion.texts(["ecsq"])
        ]
        assert rate_distortion.missed(name, points) == []
        assert all(p.bits > 0 and p.nmse > 0 for p in points)
        if name == "gaussian":  # nothing is below the bound
            assert all(p.ratio >= 1 for p in points)


def test_points_are_measured_on_real_bytes() -> None:
    x = gaussian(4096)
    point = rate_distortion.measure("topk(k=1024)", x)
    kept = x.square().sort().values[-1024:].sum() / x.square().sum()
    assert point.nmse == pytest.approx(1 - float(kept), rel=1e-4)
    assert point.bits > 32 / 4 + 0.8  # the values, and log2 C(d, k)
    assert point.ratio == pytest.approx(point.bits / (0.5 * math.log2(1 / point.nmse)))


def test_a_missed_bar_is_named() -> None:
    good = [
        Point("a", bar * 0.5 * math.log2(1 / alpha), alpha)
        for alpha, bar in rate_distortion.BARS.items()
    ]
    assert not rate_distortion.missed("gaussian", good)
    dear = [Point("a", 1.01 * p.bits, p.nmse) for p in good]
    assert len(rate_distortion.missed("gaussian", dear)) == len(good)
    assert len(rate_distortion.missed("gaussian", good[1:])) == 1
    assert not rate_distortion.missed("real update", dear)
    assert not rate_distortion.missed("student", [Point("a", 6.8, 1e-4)])
    for point in (Point("a", 6.9, 1e-4), Point("a", 6.0, 1.1e-4)):
        (line,) = rate_distortion.missed("student", [point])
        assert "6.8 bits" in line


def test_all_settings_can_be_parsed() -> None:
    made = list(rate_distortion.texts())
    for text in made:
        assert fll.parse(text).guarantee((100,))
    assert {text.partition("(")[0] for text in made} >= {"ecsq", "dither", "topk"}
    assert set(rate_distortion.SETTINGS) & set(COMPRESSORS)


def test_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = rate_distortion.main(["--methods", "ecsq", "f16", "--size", "50000"])
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.count("ecsq(nmse=0.05)") == 3
    assert "50,000 entries" in printed
    assert rate_distortion.main(["--methods", "f16", "--size", "1000"]) == 1
    assert "missed: gaussian: NMSE 0.02" in capsys.readouterr().out


def test_real_update_is_one_of_training() -> None:
    update = real_update()
    assert all(bool(t.isfinite().all()) and bool(t.any()) for t in update.values())
    assert flattened(update).numel() == sum(t.numel() for t in update.values())
    assert flattened(update).numel() > 50_000
    assert any(t.dim() == 4 for t in update.values())


def test_students_tails_are_heavy() -> None:
    x = student(100_000)
    assert float(x.abs().median()) == pytest.approx(0.765, rel=0.02)
    assert float(x.abs().max()) > 20

"""The command that measures memories; its bars are for idle machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import memory
from benchmarks.memory import Simulated


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command changes it for its process."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("FL_LOWRANK_MEMORY_DIR", raising=False)
    return tmp_path


def test_each_place_of_the_memory_is_measured(folder: Path) -> None:
    found = memory.measure(folder, num_images=8, turns=1)
    assert list(found) == ["without the mod", *memory.BARS]
    assert all(0 < client < round_ for client, round_ in found.values())
    assert len(list(folder.glob("partition-0.memory/*.full"))) == 1


@pytest.mark.parametrize(
    ("context", "file", "missed"),
    [
        ((1.2, 2.09), (1.2, 2.29), []),
        ((1.0, 2.12), (1.0, 2.0), ["memory in the Context: 1.060"]),
        ((1.0, 2.0), (1.0, 2.31), ["memory in a durable file: 1.155"]),
    ],
)
def test_a_missed_bar_is_named(
    context: tuple[float, float], file: tuple[float, float], missed: list[str]
) -> None:
    found = dict(
        zip(["without the mod", *memory.BARS], [(1.0, 2.0), context, file], strict=True)
    )
    faults = memory.compare(found, Console(quiet=True))
    assert [fault.partition(" of what")[0] for fault in faults] == missed


def test_many_clients_are_simulated_with_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = memory.simulate("auto", 4, 2, 4, folder)
    assert (found.num_clients, found.num_rounds, found.num_files) == (4, 2, 4)
    assert found.disk_gibibytes * 2**30 > 4 * 4 * 1_474_550
    assert found.before_gibibytes <= found.peak_gibibytes < 12
    options = ["--clients", "2", "--sampled", "2", "--images", "4", "--home", "context"]
    assert memory.main(options) == 0
    assert "2 clients, each once, in 1 rounds" in capsys.readouterr().out


def test_too_much_memory_is_a_fault() -> None:
    found = Simulated(4, 2, 1.0, 0.5, 12.1, 4, 0.1)
    assert memory.describe(found, Console(quiet=True)) == ["12.1 GiB of memory"]

"""Old files go, and nobody else's."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clients import FileHome
from clients.homes import cleaning
from clients.turns import Memory
from tests.clients.memories import FULL, context

DAY = 86_400.0


def fid(number: int) -> bytes:
    return bytes([number]) * 16


def keep(home: FileHome, number: int, key: object = None) -> Path:
    """Make a memory and its state; give its path."""
    memory = replace(FULL, fid=fid(number))
    for seen in ((1, 1), (1, 2)):
        with home.open(context(key), memory.fid) as slot:
            slot.save(replace(slot.memory or memory, seen=seen))
    path = home.path(context(key), memory.fid)
    assert path.exists()
    assert path.with_suffix(".state").exists()
    return path


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def home(tmp_path: Path) -> FileHome:
    return FileHome(tmp_path)


def test_a_client_keeps_its_last_trainings(home: FileHome) -> None:
    paths = [keep(home, i) for i in range(cleaning.NUM_TRAININGS)]
    for i, path in enumerate(paths):
        age(path, 1.0 - 0.1 * i)
    age(paths[0], 0.05)  # two trainings at the same time: the older one is in use
    last = keep(home, 9)
    assert [p.exists() for p in paths] == [True, False, True, True]
    assert not paths[1].with_suffix(".state").exists()
    assert last.exists()
    other = keep(home, 1, key=5)  # another client's are its own
    assert last.exists()
    assert len(list(other.parent.iterdir())) == 3


def test_memory_and_reference_of_a_training_count_once(home: FileHome) -> None:
    paths = []
    for number in range(cleaning.NUM_TRAININGS + 2):
        with home.open(context(), fid(number), "reference") as slot:
            slot.save(Memory(fid(number), "reference"))
        memory = keep(home, number)
        paths.append((memory, home.path(context(), fid(number), "reference")))
        for path in paths[-1]:
            age(path, 1.0 - 0.1 * number)
    kept = [[path.exists() for path in pair] for pair in paths]
    assert kept == [[False] * 2] * 2 + [[True] * 2] * cleaning.NUM_TRAININGS


def test_nothing_is_removed_while_a_training_goes_on(home: FileHome) -> None:
    paths = [keep(home, i) for i in range(cleaning.NUM_TRAININGS)]
    for path in paths:
        age(path, 29.0)
    keep(home, 0)
    assert all(p.exists() for p in paths)


def test_what_is_a_month_old_goes(home: FileHome) -> None:
    old, older = keep(home, 1), keep(home, 2)
    age(old, 29.0)
    age(older, 31.0)
    keep(home, 3)
    assert old.exists()
    assert not older.exists()


def test_folders_of_clients_that_are_gone_go(home: FileHome) -> None:
    gone, fresh, held = (keep(home, 1, key=k).parent for k in (1, 2, 3))
    foreign = keep(home, 1, key=4).parent
    (foreign / "notes.txt").write_text("mine")
    unlike = home.folder / "somebody.memory"
    unlike.mkdir()
    (unlike / "x.full").write_text("mine")
    plain = home.folder / "photos"
    plain.mkdir()
    link = home.folder / "link.memory"
    link.symlink_to(gone)
    with home.open(context(3), fid(1)):
        for folder in (gone, held, foreign, unlike, plain):
            age(folder, 31.0)
        age(fresh, 29.0)
        keep(home, 1, key=5)
    assert not gone.exists()
    assert fresh.exists()
    assert len(list(held.iterdir())) == 3  # somebody was just writing there
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]
    assert [p.name for p in unlike.iterdir()] == ["x.full"]
    assert plain.exists()
    assert link.is_symlink()


def test_at_most_so_many_are_removed_at_a_time(
    home: FileHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "_MAX_REMOVED", 2)
    for key in range(5):
        keep(home, 1, key=key)
    for folder in home.folder.iterdir():
        age(folder, 31.0)
    keep(home, 1, key="new")
    assert len(list(home.folder.iterdir())) == 4


def test_a_folder_that_is_taken_away_is_made_again(home: FileHome) -> None:
    path = keep(home, 1)
    with home.open(context(), fid(1)) as slot:
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        memory = slot.memory
        assert memory is not None
    with home.open(context(), fid(1)) as slot:
        assert slot.memory is None
        slot.save(Memory(fid(1), "ef"))
    assert path.exists()

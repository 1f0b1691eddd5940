"""A memory in a file: whole or not at all, its owner's alone, and strictly read."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clients import FileHome
from clients.homes import disk
from clients.turns import Memory
from fl_lowrank import files as fll_files
from fl_lowrank.errors import SettingError
from tests.clients.memories import (
    FID,
    FULL,
    NODE,
    OTHER_FID,
    assert_same,
    assert_same_state,
    context,
    numbers,
)

NEWER = replace(
    FULL, seen=(1_790_000_001, 1), tensors={"w": numbers(50, 4)}, pending=(5, b"new")
)
LATER = replace(NEWER, seen=(1_790_000_002, 1), pending=None, unsettled=1)


@pytest.fixture
def home(tmp_path: Path) -> FileHome:
    return FileHome(tmp_path / "memories")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    yield caplog
    flower.removeHandler(caplog.handler)


def keep(home: FileHome, memory: Memory, key: object = None) -> None:
    with home.open(context(key), memory.fid) as slot:
        slot.save(memory)


def kept(home: FileHome, fid: bytes = FID, key: object = None) -> Memory | None:
    with home.open(context(key), fid) as slot:
        return slot.memory


def test_what_is_saved_is_loaded_bit_for_bit(home: FileHome) -> None:
    assert kept(home) is None
    for memory in (FULL, NEWER, LATER, Memory(FID, "plain"), FULL):
        keep(home, memory)
        assert_same(kept(home), memory)
        again = FileHome(home.folder)
        assert_same(kept(again), memory)
        assert_same_state(again.peek(context(), FID), memory)


def test_clients_and_trainings_have_memories_of_their_own(home: FileHome) -> None:
    keep(home, FULL)
    assert kept(home, OTHER_FID) is None
    assert kept(home, key=3) is None
    assert home.peek(context(), OTHER_FID) is None
    keep(home, replace(LATER, fid=OTHER_FID))
    keep(home, NEWER, key=3)
    assert_same(kept(home), FULL)
    assert_same(kept(home, OTHER_FID), replace(LATER, fid=OTHER_FID))
    assert_same(kept(home, key=3), NEWER)


def test_without_durability_files_are_the_same(tmp_path: Path) -> None:
    keep(FileHome(tmp_path, durable=False), FULL)
    assert_same(kept(FileHome(tmp_path)), FULL)


def test_short_numbers_take_two_bytes(home: FileHome) -> None:
    tensors = {"w": torch.zeros(10_000, dtype=torch.bfloat16)}
    keep(home, Memory(FID, "ef(precision=bfloat16)", tensors=tensors))
    size = home.path(context(), FID).stat().st_size
    assert 20_000 < size < 20_600


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(SettingError, match="expected an absolute path, found 'here'"):
        FileHome("here")
    assert FileHome("~/here").folder == Path.home() / "here"


# --- only the state


def files(home: FileHome) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in home.path(context(), FID).parent.iterdir()}


def test_a_change_of_state_alone_leaves_the_numbers_where_they_are(
    home: FileHome,
) -> None:
    keep(home, NEWER)
    before = files(home)
    for seen in (5, 6):
        with home.open(context(), FID) as slot:
            assert slot.memory is not None
            now = replace(slot.memory, seen=(1_800_000_000, seen), pending=None)
            # As a turn that did not arrive: other dict, same tensors.
            slot.save(replace(now, tensors=dict(now.tensors)))
        assert files(home)[f"{FID.hex()}.full"] == before[f"{FID.hex()}.full"]
        assert len(files(home)[f"{FID.hex()}.state"]) < 500
        assert_same(kept(home), now)
        assert_same_state(home.peek(context(), FID), now)
    keep(home, FULL)
    assert files(home).keys() == before.keys()
    assert_same(kept(home), FULL)


def test_a_state_of_other_numbers_is_void(home: FileHome) -> None:
    """As after a death between replacing the memory and removing the state."""
    keep(home, NEWER)
    with home.open(context(), FID) as slot:
        assert slot.memory is not None
        slot.save(replace(slot.memory, seen=(1_800_000_000, 5)))
    state = home.path(context(), FID).with_suffix(".state")
    data = state.read_bytes()
    keep(home, FULL)
    state.write_bytes(data)
    assert_same(kept(home), FULL)


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": {"w": NEWER.tensors["w"].clone()}},
        {"tensors": {}},
        {"codec": {"w/q": numbers(4, 2, seed=1)}},
        {"codec": {}},
        {"pending": (5, b"old")},
        {"pending": (6, b"new")},
    ],
)
def test_any_other_change_is_written(home: FileHome, change: dict[str, object]) -> None:
    keep(home, NEWER)
    before = files(home)
    with home.open(context(), FID) as slot:
        assert slot.memory is not None
        after = replace(slot.memory, **change)
        slot.save(after)
    assert files(home).keys() == before.keys()
    assert files(home) != before
    assert_same(kept(home), after)


# --- atomicity


class Killed(BaseException):
    """No ``except Exception`` sees it."""


MAKE, SYNC, REPLACE, UNLINK = (
    (fll_files.tempfile, "mkstemp"),
    (fll_files.os, "fsync"),
    (fll_files.Path, "replace"),
    (fll_files.Path, "unlink"),
)
#: What the killed process was about to do, which time, or had just done; and whether
#: the new memory is found afterwards.
DEATHS = {
    "before making a file": (MAKE, 1, True, False),
    "after making a file": (MAKE, 1, False, False),
    "before synchronising the file": (SYNC, 1, True, False),
    "after synchronising the file": (SYNC, 1, False, False),
    "before replacing": (REPLACE, 1, True, False),
    "after replacing": (REPLACE, 1, False, True),
    "before synchronising the folder": (SYNC, 2, True, True),
    "after synchronising the folder": (SYNC, 2, False, True),
    "before removing the state": (UNLINK, 1, True, True),
    "after removing the state": (UNLINK, 1, False, True),
}


@pytest.mark.parametrize(
    ("death", "state_alone"),
    [
        *((death, False) for death in DEATHS),
        # Where the state alone is written nothing is removed.
        *((death, True) for death, (what, *_) in DEATHS.items() if what is not UNLINK),
    ],
)
def test_a_death_at_any_step_leaves_the_old_or_the_new_memory(
    home: FileHome, monkeypatch: pytest.MonkeyPatch, death: str, state_alone: bool
) -> None:
    (where, name), attempt, before, is_new = DEATHS[death]
    keep(home, FULL)
    with home.open(context(), FID) as slot:
        assert slot.memory is not None
        old = replace(slot.memory, seen=(1_790_000_000, 2**41))
        slot.save(old)
    usual = getattr(where, name)
    calls = 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == attempt and before:
            raise Killed
        result = usual(*args, **kwargs)
        if calls == attempt:
            raise Killed
        return result

    with home.open(context(), FID) as slot, monkeypatch.context() as patch:
        assert slot.memory is not None
        new = replace(slot.memory, seen=(1_790_000_009, 0)) if state_alone else NEWER
        # Nobody cleans up after a kill.
        patch.setattr(disk.Path, "unlink", dying_unlink)
        patch.setattr(where, name, dying)
        with pytest.raises(Killed):
            slot.save(new)
    assert_same(kept(FileHome(home.folder)), new if is_new else old)
    assert not [name for name in files(home) if name.endswith(".tmp")]
    keep(home, LATER)
    assert_same(kept(home), LATER)


def dying_unlink(self: Path, missing_ok: bool = False) -> None:
    raise Killed


def test_a_file_that_is_half_written_is_no_memory(home: FileHome) -> None:
    keep(home, FULL)
    half = home.path(context(), FID).with_name("abc.tmp")
    half.write_bytes(b"FLM1...")
    assert_same(kept(home), FULL)
    assert not half.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_disk_is_told_and_changes_nothing(
    home: FileHome, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    keep(home, FULL)

    def refused(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refused)
        with pytest.raises(SettingError, match="make room, or name another folder"):
            keep(home, NEWER)
    assert_same(kept(home), FULL)


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = FileHome(tmp_path / "file" / "below")
    with pytest.raises(SettingError, match="Not a directory"):
        kept(home)
    with pytest.raises(SettingError, match="Not a directory"):
        home.peek(context(), FID)


def test_a_folder_without_permission_is_told(
    home: FileHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, FULL)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may anything
    with pytest.raises(SettingError, match="Cannot write"):
        home.peek(context(), FID)


# --- damage


def assert_lost(home: FileHome, warnings: pytest.LogCaptureFixture) -> None:
    warnings.clear()
    assert kept(home) is None
    assert f"memory of node-{NODE} in" in warnings.messages[0]
    assert "is lost" in warnings.messages[0]


@pytest.mark.parametrize("which", ["full", "state"])
def test_every_cut_and_sampled_flips_are_a_lost_memory(
    home: FileHome, warnings: pytest.LogCaptureFixture, which: str
) -> None:
    rng = random.Random(2)
    keep(home, FULL)
    with home.open(context(), FID) as slot:
        assert slot.memory is not None
        later = replace(slot.memory, seen=(1_800_000_000, 0))
        slot.save(later)
    assert_same(kept(home), later)
    path = home.path(context(), FID).with_suffix(f".{which}")
    data = path.read_bytes()
    damaged = [data[:size] for size in range(len(data))]
    damaged += [data + b"\0", data + data, bytes(len(data)), b"FLM1" + b"\xff" * 9]
    for place in [*range(12), *rng.sample(range(len(data)), 100)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        if which == "state" and content[: len(data)] == data:
            continue  # what follows a state is not looked at
        path.write_bytes(content)
        assert_lost(home, warnings)
        home.peek(context(), FID)  # tells anything, but does not fail
    keep(home, NEWER)  # it is mended by writing
    assert_same(kept(home), NEWER)


def test_what_is_not_ours_is_a_lost_memory(
    home: FileHome, warnings: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    keep(home, FULL)
    keep(home, replace(FULL, fid=OTHER_FID))
    keep(home, FULL, key=3)
    path = home.path(context(), FID)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    makers: list[Callable[[], object]] = [
        lambda: shutil.copy(home.path(context(), OTHER_FID), path),
        lambda: shutil.copy(home.path(context(3), FID), path),
        lambda: path.symlink_to(elsewhere),
        lambda: os.mkfifo(path),
        path.mkdir,
    ]
    for make in makers:
        path.unlink()
        make()
        assert_lost(home, warnings)
        assert home.peek(context(), FID) is None
        if path.is_dir():
            path.rmdir()
        keep(home, NEWER)
        assert_same(kept(home), NEWER)
    assert elsewhere.exists()


def test_a_huge_hole_is_not_read(
    home: FileHome, warnings: pytest.LogCaptureFixture
) -> None:
    """A file of 2^40 bytes on paper; reading them would need as much memory."""
    keep(home, FULL)
    path = home.path(context(), FID)
    os.truncate(path, 2**40)
    assert_lost(home, warnings)
    path.write_bytes(b"")
    os.truncate(path, 2**40)
    assert_lost(home, warnings)


# --- who may read it, and under what name


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_files_are_their_owners_alone(home: FileHome, mask: int) -> None:
    before = os.umask(mask)
    try:
        keep(home, NEWER)
        with home.open(context(), FID) as slot:
            assert slot.memory is not None
            slot.save(replace(slot.memory, unsettled=1))
    finally:
        os.umask(before)
    folder = home.path(context(), FID).parent
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    names = {"lock", f"{FID.hex()}.full", f"{FID.hex()}.state"}
    assert found == dict.fromkeys(names, 0o600)


HOSTILE = [
    "../../outside",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/b",
    "a\0b",
    "A",
    "a",
    "é",
    "x" * 5000,
    "line\nbreak",
    "\udcff",
    "-rf",
    "lock",
    3,
    True,
    1.5,
]


def test_hostile_keys_stay_inside_and_apart(home: FileHome, tmp_path: Path) -> None:
    paths = [home.path(context(key), FID) for key in HOSTILE]
    assert len({str(p.parent).lower() for p in paths}) == len(HOSTILE)
    for number, key in enumerate(HOSTILE):
        keep(home, replace(FULL, base=number), key=key)
    for number, key in enumerate(HOSTILE):
        memory = kept(home, key=key)
        assert memory is not None
        assert memory.base == number
    assert {p.name for p in tmp_path.iterdir()} == {"memories"}
    found = list(home.folder.iterdir())
    assert len(found) == len(HOSTILE)
    assert all(len(p.name) < 100 for p in found)
    assert all(p.parent.parent == home.folder for p in paths)

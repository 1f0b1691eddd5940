"""Files that nobody will ask for again, removed by the next one who makes a file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fl_lowrank.errors import ProtocolError
from fl_lowrank.files import TEMPORARY

from . import disk

#: Endings of a client's folder, of a memory, of its state, in that folder.
FOLDER, MEMORY, STATE, LOCK = ".memory", ".full", ".state", "lock"
#: Trainings of which a client has memories; several can run at the same time.
NUM_TRAININGS = 4
MAX_AGE_SECONDS = 30 * 86_400.0
#: Folders of other clients removed at a time.
_MAX_REMOVED = 64


def remove_unfinished(folder: Path) -> None:
    """Remove what a process has left that died while it wrote; needs the lock."""
    for path in _files(folder):
        if path.suffix == TEMPORARY:
            path.unlink(missing_ok=True)


def remove_old(path: Path) -> None:
    """Make room for a new memory; needs the lock on the folder it will be in.

    Of its client's other trainings the last ones stay; other clients' folders go if
    nothing has been written in them for 30 days.
    """
    trainings: dict[str, list[Path]] = {}
    for found in _files(path.parent):
        if found.suffix == MEMORY and _training(found) != _training(path):
            trainings.setdefault(_training(found), []).append(found)
    ages = {name: min(map(_age, paths)) for name, paths in trainings.items()}
    newest_first = sorted(ages, key=lambda name: ages[name])
    for place, name in enumerate(newest_first, start=1):
        if place >= NUM_TRAININGS or ages[name] > MAX_AGE_SECONDS:
            for old in trainings[name]:
                _remove(old)
    num_removed = 0
    for folder in path.parent.parent.glob(f"*{FOLDER}"):
        is_ours = (folder / LOCK).is_file() and not folder.is_symlink()
        if folder == path.parent or not is_ours or _age(folder) <= MAX_AGE_SECONDS:
            continue
        _remove_folder(folder)
        num_removed += 1
        if num_removed >= _MAX_REMOVED:
            return


def _remove_folder(folder: Path) -> None:
    """Remove the folder of a client that is not just being served."""
    with suppress(OSError, ProtocolError), disk.locked(folder / LOCK, patience=0.0):
        for path in _files(folder):
            if path.suffix in (MEMORY, STATE, TEMPORARY):
                path.unlink(missing_ok=True)
        (folder / LOCK).unlink()
        folder.rmdir()


def _training(memory: Path) -> str:
    """Give the training that a file belongs to; it may have several."""
    return memory.stem.partition("-")[0]


def _remove(memory: Path) -> None:
    memory.unlink(missing_ok=True)
    memory.with_suffix(STATE).unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    """Give the paths in a folder that exists."""
    with os.scandir(folder) as entries:
        yield from [Path(e.path) for e in entries]


def _age(path: Path) -> float:
    """Seconds since something was written there; 0 if it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0

"""Folders for simulations: as long as one of its processes lives, and no longer."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from fl_lowrank.errors import ProtocolError, SettingError

from . import disk
from .cleaning import NUM_TRAININGS

_IN_USE = "in-use"
_NUM_HEX = 32
_OURS = re.compile(rf"[0-9a-f]{{{_NUM_HEX}}}(-[0-9a-f]{{8}})?")
_PATIENCE = 10.0


class Scratch:
    """Gives each training a folder, and removes those that no process uses.

    A process that has asked for a folder holds a shared lock on a file in it. When it
    ends, or has asked for the folders of three more trainings, it lets go, and the last
    one that does removes the folder. What a killed process leaves is removed by the
    next simulation of the same user.

    Parameters
    ----------
    root : Path, optional
        Where the folders are. Left out: ``fl-lowrank-<user id>`` in ``$TMPDIR``; or
        else in ``/var/tmp``, since ``/tmp`` is often a part of the RAM; or else where
        `tempfile` decides.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._held: dict[Path, int] = {}
        self._pid = os.getpid()

    def folder(self, fid: bytes) -> Path:
        """Give the folder of a training, which stays while this process lives."""
        if os.getpid() != self._pid:  # after a fork the locks are the parent's
            self._held, self._pid = {}, os.getpid()
        root = _default_root() if self._root is None else self._root
        folder = root / fid.hex()
        if folder not in self._held:
            with disk.explained(root):
                _make_private(root)
                if not self._held:
                    atexit.register(self.close)
                self._held[folder] = _hold(folder)
                while len(self._held) > NUM_TRAININGS:
                    self._let_go(next(iter(self._held)))
                _sweep(root)
        return folder

    def close(self) -> None:
        """Let all folders go."""
        if os.getpid() == self._pid:
            for folder in list(self._held):
                self._let_go(folder)

    def _let_go(self, folder: Path) -> None:
        disk.release(self._held.pop(folder))
        _remove_unused(folder)


SCRATCH = Scratch()


def _default_root() -> Path:
    named = os.environ.get("TMPDIR")
    usual = Path("/var/tmp")
    if named is None and os.access(usual, os.W_OK | os.X_OK):
        named = str(usual)
    return Path(named or tempfile.gettempdir()) / f"fl-lowrank-{os.geteuid()}"


def _make_private(root: Path) -> None:
    """Make the folder; one that somebody else could write to is refused."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not root.is_dir() or found.st_uid != os.geteuid() or found.st_mode & others:
        msg = (
            f"memory: expected {root} to be a folder of user {os.geteuid()} alone, "
            f"found owner {found.st_uid} and mode {stat.filemode(found.st_mode)}; "
            "remove it, or name another place by TMPDIR"
        )
        raise SettingError(msg)


def _hold(folder: Path) -> int:
    """Make a folder and lock it against removal."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        # A process that sweeps can take the folder away before it is locked.
        with suppress(FileNotFoundError):
            return disk.acquire(folder / _IN_USE, _PATIENCE, shared=True)


def _sweep(root: Path) -> None:
    """Remove what no process uses."""
    for path in root.iterdir():
        if _OURS.fullmatch(path.name):
            _remove_unused(path)


def _remove_unused(folder: Path) -> None:
    with suppress(OSError, ProtocolError), disk.locked(folder / _IN_USE, patience=0.0):
        # Renamed first, since removing takes time, and the name may be wanted again.
        gone = folder.with_name(f"{folder.name[:_NUM_HEX]}-{secrets.token_hex(4)}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

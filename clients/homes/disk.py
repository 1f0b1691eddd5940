"""Folders and files of one owner, and locks that die with their holder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fl_lowrank.errors import ProtocolError, SettingError, WireError
from fl_lowrank.files import sync_folder

_POLL_SECONDS = 0.02


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Say what to do when the operating system refuses something."""
    try:
        yield
    except OSError as error:
        msg = (
            f"memory: expected a folder for files and locks in {folder}, found: "
            f"{error}; make room, or name another folder (see the README)"
        )
        raise SettingError(msg) from error


def make_folder(path: Path, *, durable: bool) -> None:
    """Make a folder that is its owner's alone, and those above it, to write in."""
    if path.is_dir():
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Cannot write", str(path))
        return
    make_folder(path.parent, durable=durable)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if durable:
        sync_folder(path.parent)


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Give the descriptor of a file to read, and its size.

    Raises
    ------
    WireError
        If it is a link, a pipe or anything else that is not a file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        msg = f"memory: {path} is a link"
        raise WireError(msg) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            msg = f"memory: {path} is no regular file"
            raise WireError(msg)
        yield fd, found.st_size
    finally:
        os.close(fd)


def read(fd: int, size: int) -> bytearray:
    """Read so many bytes, or `WireError`."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = os.readv(fd, [view])
        if not count:
            msg = f"memory: {len(view)} of {size} bytes are missing; it was cut"
            raise WireError(msg)
        view = view[count:]
    return data


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Hold the lock on a file, made if need be, that no other process holds.

    The operating system takes the lock away when its holder dies.

    Raises
    ------
    ProtocolError
        If it is not free within ``patience`` seconds.
    """
    fd = acquire(path, patience)
    try:
        yield
    finally:
        release(fd)


def acquire(path: Path, patience: float, *, shared: bool = False) -> int:
    """Give a descriptor that holds a lock, shared or not; see `locked`."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    give_up = time.monotonic() + patience
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            if _is_at(fd, path):  # not removed by a cleaning process meanwhile
                return fd
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
            if time.monotonic() > give_up:
                msg = (
                    f"memory: another process has held {path} for {patience:g} s; "
                    "is another request of this client still being served?"
                )
                raise ProtocolError(msg) from None
            time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(fd)
            raise


def release(fd: int) -> None:
    """Let a lock go, also if a child process has inherited the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False

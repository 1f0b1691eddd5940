"""Files that are either whole and new, or as they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

#: Suffix of files that are being written.
TEMPORARY = ".tmp"
_BUFFER_BYTES = 1 << 16


def write_atomically(
    path: Path, parts: Iterable[bytes | memoryview], *, durable: bool = True
) -> None:
    """Replace a file; a crash at any time leaves the old one or the new one.

    Parameters
    ----------
    path : Path
        Readable and writable for its owner alone afterwards.
    parts : iterable
        What to write, in order.
    durable : bool
        Also survive a loss of power after this has returned.

    Raises
    ------
    OSError
        If it cannot be written; the old file is untouched then.
    """
    fd, name = tempfile.mkstemp(TEMPORARY, "", path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with open(fd, "wb", buffering=_BUFFER_BYTES) as file:
            file.writelines(parts)
            file.flush()
            if durable:
                os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

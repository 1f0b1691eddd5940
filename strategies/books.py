"""Which book a training gets, by the mode of its memories."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fl_lowrank.errors import SettingError
from fl_lowrank.feedback import Feedback

from .node_book import NodeBook
from .node_memories import NodeMemories
from .turns import Book, new_fid

MemoryMode: TypeAlias = Literal["sum", "per-node"]


def memory_folder(
    mode: MemoryMode, folder: str | Path | None, checkpoint: str | Path | None
) -> Path | None:
    """Choose where the vectors of single clients lie; None in mode ``sum``.

    Raises
    ------
    SettingError
        If there is no such mode, or a folder without need.
    """
    if mode not in get_args(MemoryMode):
        modes = " or ".join(map(repr, get_args(MemoryMode)))
        msg = f"Compressed: expected memory to be {modes}, found {mode!r}"
        raise SettingError(msg)
    if mode == "sum":
        if folder is not None:
            msg = 'Compressed: memory_dir= is of use with memory="per-node" alone'
            raise SettingError(msg)
        return None
    if folder is None and checkpoint is not None:
        return Path(f"{checkpoint}.memories")
    if folder is None:
        folder = tempfile.mkdtemp(prefix="fl-lowrank-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def new_book(feedback: Feedback, folder: Path | None) -> Book:
    """Make the book of a new training."""
    if folder is None or not feedback.has_share:
        return Book(feedback)
    fid = new_fid()
    return NodeBook(feedback, fid, memories=NodeMemories(folder, fid))


def resumed_book(
    feedback: Feedback, folder: Path | None, plain: Mapping[str, Any]
) -> Book:
    """Go on with the book of a checkpoint."""
    if folder is None or not feedback.has_share:
        return Book.resumed(feedback, plain)
    memories = NodeMemories(folder, bytes.fromhex(plain["fid"]))
    book = NodeBook.resumed(feedback, plain, memories=memories)
    book.check_memories()
    return book

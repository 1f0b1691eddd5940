"""The home on disk: a folder for each client, a file for each of its trainings."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from logging import WARNING
from pathlib import Path

from flwr.app import Context
from flwr.common import log
from torch import Tensor

from fl_lowrank.errors import SettingError, WireError
from fl_lowrank.files import write_atomically

from .. import heads, storage
from ..turns import Memory
from . import disk
from .base import Home, Part, Slot, client_key
from .cleaning import FOLDER, LOCK, MEMORY, STATE, remove_old, remove_unfinished

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


class FileHome(Home):
    """Keeps memories in files below a folder, durable before a reply leaves.

    For each client there is a folder ``<client key>.memory``, its owner's alone, and
    in it ``<training>.full``, one memory with a checksum, replaced at once or not at
    all; beside it ``<training>-reference.full``, where models come compressed. A
    request that changes only the state of the protocol, as most of those that evaluate,
    writes that alone, to ``<training>.state``. A file that is damaged, cut or somebody
    else's is a lost memory: it is logged, and mended by the protocol. While a memory is
    read, changed and written, ``lock`` keeps other processes away.

    A client keeps the memories of its last four trainings, and none for more than 30
    days after it was used last. Cost on disk: a training's memory, twice while it is
    being replaced.

    Parameters
    ----------
    folder : path
        Absolute, or beginning with ``~``; made if need be. Several clients can share
        one. Its file system must have locks (``flock``).
    durable : bool
        False: after a loss of power memories may be lost, but still not damaged.
    patience : float
        Seconds to wait for another request of the same client that is just being
        compressed; training is not waited for, two requests can train at once.

    Raises
    ------
    SettingError
        If the path is relative.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        durable: bool = True,
        patience: float = 60.0,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.durable = durable
        self.patience = patience
        if not self.folder.is_absolute():
            msg = (
                f"memory: expected an absolute path, found {str(folder)!r}; clients "
                "are started in folders that are not theirs"
            )
            raise SettingError(msg)

    def path(self, context: Context, fid: bytes, part: Part = "memory") -> Path:
        """Give the path of a memory, whether there is one or not."""
        folder = self.folder / f"{_folder_name(client_key(context))}{FOLDER}"
        name = fid.hex() if part == "memory" else f"{fid.hex()}-{part}"
        return folder / f"{name}{MEMORY}"

    def peek(self, context: Context, fid: bytes) -> Memory | None:
        """Read the heads alone, without the lock; `SettingError` as for `open`."""
        path = self.path(context, fid)
        with disk.explained(self.folder):
            disk.make_folder(path.parent, durable=self.durable)
        slot = FileSlot(path, client_key(context), fid, self.durable)
        with suppress(WireError, OSError):
            head, _ = slot.read(with_body=False)
            return head.state
        return None

    @contextmanager
    def open(
        self, context: Context, fid: bytes, part: Part = "memory"
    ) -> Iterator[Slot]:
        """Give a memory under the lock of its client."""
        path = self.path(context, fid, part)
        with disk.explained(self.folder):
            lock = self._lock(path.parent)
        try:
            slot = FileSlot(path, client_key(context), fid, self.durable)
            with disk.explained(self.folder):
                remove_unfinished(path.parent)
                if not path.exists():
                    remove_old(path)
            slot.load()
            yield slot
        finally:
            disk.release(lock)

    def _lock(self, folder: Path) -> int:
        while True:
            disk.make_folder(folder, durable=self.durable)
            # A process that cleans can take the folder away before it is locked.
            with suppress(FileNotFoundError):
                return disk.acquire(folder / LOCK, self.patience)


class FileSlot(Slot):
    """One file, and the state beside it."""

    def __init__(self, path: Path, owner: str, fid: bytes, durable: bool) -> None:
        super().__init__(None)
        self._path = path
        self._owner = owner
        self._fid = fid
        self._durable = durable
        self._ident = ""

    @property
    def _state_path(self) -> Path:
        return self._path.with_suffix(STATE)

    def load(self) -> None:
        """Read the memory; what cannot be read is lost."""
        try:
            head, self.memory = self.read()
            self._ident = head.ident
        except FileNotFoundError:
            pass
        except (WireError, OSError) as error:
            msg = "CompressionMod: the memory of %s in %s is lost, it starts anew: %s"
            log(WARNING, msg, self._owner, self._path, error)

    def read(self, *, with_body: bool = True) -> tuple[heads.Head, Memory | None]:
        """Read the file, as strictly as if it came from a stranger."""
        with disk.opened(self._path) as (fd, size):
            head, head_size = self._read_head(fd, size)
            if head.body_size != size - head_size:
                msg = f"memory: announces {head.body_size} bytes, has {size}"
                raise WireError(msg)
            with suppress(FileNotFoundError), disk.opened(self._state_path) as of_state:
                newer, _ = self._read_head(*of_state)
                if newer.ident == head.ident:
                    head = replace(head, state=newer.state)
            if not with_body:
                return head, None
            return head, storage.read_body(head, disk.read(fd, size - head_size))

    def save(self, memory: Memory) -> None:
        """Write all of it, or the state alone if nothing else has changed."""
        with disk.explained(self._path.parent):
            if self.memory is not None and _same_body(self.memory, memory):
                head = heads.to_head(memory, owner=self._owner, ident=self._ident)
                write_atomically(self._state_path, [head], durable=self._durable)
            else:
                self._ident = secrets.token_hex(16)
                parts = storage.to_parts(memory, owner=self._owner, ident=self._ident)
                write_atomically(self._path, parts, durable=self._durable)
                self._state_path.unlink(missing_ok=True)  # void already: another ident
        self.memory = memory

    def _read_head(self, fd: int, size: int) -> tuple[heads.Head, int]:
        frame = disk.read(fd, min(size, heads.FRAME.size))
        head_size = heads.head_size(bytes(frame))
        if head_size > size:
            msg = f"memory: announces a head of {head_size} bytes, has {size}"
            raise WireError(msg)
        head = heads.read_head(bytes(frame + disk.read(fd, head_size - len(frame))))
        if (head.owner, head.state.fid) != (self._owner, self._fid):
            msg = f"memory: it is that of {head.owner} in {head.state.fid.hex()}"
            raise WireError(msg)
        return head, head_size


def _folder_name(key: str) -> str:
    """Give a name that is safe in any file system, another one for each key."""
    if _PLAIN.fullmatch(key):
        return key
    return f"={hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()}"


def _same_body(before: Memory, after: Memory) -> bool:
    """Whether tensors are the same objects, and no other payload is pending."""
    return (
        _same(before.tensors, after.tensors)
        and _same(before.codec, after.codec)
        and after.pending in (None, before.pending)
    )


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(value is b[name] for name, value in a.items())

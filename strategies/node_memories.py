"""The clients' shared vectors on the server's disk, one file for each applied turn.

A file is written before its turn is applied, under the turn's number, and the one
before it is removed afterwards: so a checkpoint and the files that it names are
always of one time. Only files of the clients in a round are touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fl_lowrank.errors import ProtocolError, WireError
from fl_lowrank.files import write_atomically

from .packing import pack, unpack


class NodeMemories:
    """Vectors of one training's clients.

    Parameters
    ----------
    folder : Path
        Of this server alone; made if there is none.
    fid : bytes
        The training.
    """

    def __init__(self, folder: Path, fid: bytes) -> None:
        self.folder = folder / fid.hex()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(self, client: str, turn: int, vectors: Mapping[str, Tensor]) -> None:
        """Keep a client's vectors as they are after a turn.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        write_atomically(self._path(client, turn), pack(dict(vectors)))

    def read(self, client: str, turn: int) -> dict[str, Tensor]:
        """Give a client's vectors after a turn.

        Raises
        ------
        ProtocolError
            If they are not there any more, or damaged.
        """
        try:
            found: dict[str, Tensor] = unpack(self._path(client, turn).read_bytes())
        except (OSError, WireError) as error:
            msg = f"the server's memory of {client} is lost ({error})"
            raise ProtocolError(msg) from error
        return found

    def has(self, client: str, turn: int) -> bool:
        """Whether there is a file of a turn."""
        return self._path(client, turn).exists()

    def keep_only(self, turns: Mapping[str, int]) -> None:
        """Remove all files but these."""
        kept = {self._path(client, turn).name for client, turn in turns.items()}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def _path(self, client: str, turn: int) -> Path:
        # A client chooses its key, which may hold anything.
        name = hashlib.sha256(client.encode()).hexdigest()[:32]
        return self.folder / f"{name}-{turn:016x}"

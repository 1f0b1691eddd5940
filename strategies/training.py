"""A whole training as a value, and its checkpoint: one file, written every round."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import ArrayRecord

from fl_lowrank.errors import ProtocolError, SettingError, WireError
from fl_lowrank.feedback import Feedback
from fl_lowrank.files import write_atomically

from .books import resumed_book
from .downlink import Downlink
from .inner_state import InnerState
from .ledger import Ledger
from .loop import Progress
from .packing import pack, unpack
from .turns import Book


@dataclass
class Training:
    """Everything that survives a restart of the server.

    Attributes
    ----------
    book : Book
        The server's side of the clients' memories.
    progress : Progress
        Rounds, model, metrics.
    ledger : Ledger
        Bytes of all messages.
    downlink : Downlink, optional
        The reference of compressed models.
    """

    book: Book
    progress: Progress
    ledger: Ledger = field(default_factory=Ledger)
    downlink: Downlink | None = None

    def save(self, path: Path, inner: InnerState) -> None:
        """Replace a checkpoint, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        state = {
            "feedback": str(self.book.feedback),
            "book": self.book.plain(),
            "ledger": self.ledger.plain(),
            "progress": self.progress.plain(),
            "inner": inner.plain(),
            "downlink": None if self.downlink is None else self.downlink.plain(),
        }
        write_atomically(path, pack(state))

    @classmethod
    def resumed(
        cls,
        path: Path,
        feedback: Feedback,
        arrays: ArrayRecord,
        inner: InnerState,
        folder: Path | None = None,
        downlink: Downlink | None = None,
    ) -> Training:
        """Read a checkpoint and bring the inner strategy to where it was.

        Parameters
        ----------
        path : Path
            Of the checkpoint.
        feedback : Feedback
            Must be the one it was written with, since the memories are its.
        arrays : ArrayRecord
            Names, shapes and dtypes that the model must have.
        inner : InnerState
            Of the inner strategy.
        folder : Path, optional
            Where the vectors of single clients lie.
        downlink : Downlink, optional
            Brought to where it was; it begins anew if the training had none.

        Raises
        ------
        ProtocolError
            If there is no such file, or it is damaged or of another version.
        SettingError
            If it is of another training.
        """
        try:
            state = unpack(path.read_bytes())
        except FileNotFoundError as error:
            msg = f"Compressed: there is no checkpoint {path}; start without resume="
            raise ProtocolError(msg) from error
        except WireError as error:
            msg = f"Compressed: cannot resume from {path}: {error}"
            raise ProtocolError(msg) from error
        if state["feedback"] != str(feedback):
            msg = (
                f'Compressed: {path} was written with feedback="{state["feedback"]}", '
                f'found "{feedback}"; its memories are of no use to another one'
            )
            raise SettingError(msg)
        progress = Progress.resumed(state["progress"])
        if _form(progress.arrays) != _form(arrays):
            msg = (
                f"Compressed: {path} holds a model of {len(progress.arrays)} arrays "
                f"with other names, shapes or dtypes than the initial ones "
                f"({len(arrays)}); resume with the same model"
            )
            raise SettingError(msg)
        inner.resume(state["inner"])
        book = resumed_book(feedback, folder, state["book"])
        if downlink is not None and state.get("downlink") is not None:
            downlink.resume(state["downlink"])
        return cls(book, progress, Ledger.resumed(state["ledger"]), downlink)


def _form(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, a.dtype, tuple(a.shape)) for name, a in arrays.items()]

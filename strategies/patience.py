"""When a training has become pointless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message

from fl_lowrank.errors import ProtocolError

#: Rounds in a row without a usable reply that end the training.
MAX_EMPTY_ROUNDS = 3


@dataclass
class Patience:
    """Counts rounds in a row without a usable reply, for a strategy of some name."""

    num_empty: int = 0
    who: str = "Compressed"

    def count(self, *, usable: bool, answered: bool, errors: Sequence[Message]) -> None:
        """Note how a round went.

        Raises
        ------
        ProtocolError
            After three rounds in a row without a usable reply.
        """
        self.num_empty = 0 if usable else self.num_empty + 1
        if self.num_empty < MAX_EMPTY_ROUNDS:
            return
        why = "no node answered"
        if errors:
            why = f"the last error was: {errors[-1].error.reason}"
        elif answered:
            why = "none could be decoded, see the log"
        msg = (
            f"{self.who}: {self.num_empty} rounds in a row without a usable reply; "
            f"{why}"
        )
        raise ProtocolError(msg)

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
    """Counts what was in vain in a row.

    Attributes
    ----------
    who : str
        The strategy, for the message.
    most : int
        How many in a row end the training.
    what : str
        What is counted, of which there was no usable reply to any.
    num_empty : int
        How many there were since the last usable reply.
    """

    who: str = "Compressed"
    most: int = MAX_EMPTY_ROUNDS
    what: str = "rounds"
    num_empty: int = 0

    def count(
        self,
        *,
        usable: bool,
        answered: bool = False,
        errors: Sequence[Message] = (),
        number: int = 1,
    ) -> None:
        """Note how so many went.

        Raises
        ------
        ProtocolError
            If too many in a row were in vain.
        """
        self.num_empty = 0 if usable else self.num_empty + number
        if self.num_empty < self.most:
            return
        why = "no node answered"
        if errors:
            why = f"the last error was: {errors[-1].error.reason}"
        elif answered:
            why = "none could be decoded, see the log"
        msg = (
            f"{self.who}: {self.num_empty} {self.what} in a row without a usable "
            f"reply; {why}"
        )
        raise ProtocolError(msg)

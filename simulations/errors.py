"""The one exception of the simulations, and the look-up that raises it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class SimulationError(Exception):
    """A run cannot start or go on; the text is one sentence for the user."""


def choose(table: Mapping[str, Value], name: str, what: str) -> Value:
    """Look `name` up in a table of the app, or say what there is.

    Parameters
    ----------
    table : Mapping[str, Value]
        The choices.
    name : str
        The key asked for.
    what : str
        The key or flag that holds the name, for the message.

    Returns
    -------
    Value
        The entry.
    """
    if name not in table:
        raise SimulationError(
            f"unknown {what} {name!r}, choose one of {', '.join(table)}."
        )
    return table[name]

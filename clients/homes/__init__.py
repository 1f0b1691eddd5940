"""Where a client's memory lives: in Flower's Context, or in a file.

A home gives the memory of one training to one request at a time. `FileHome` is durable
before the reply leaves, so that a restart costs nothing; `ContextHome` lives as long as
Flower's Context does (the process of a SuperNode, a simulation). `choose` decides when
the app does not. The server never does: no message names a path.
"""

from __future__ import annotations

from .base import Home, Slot, client_key
from .choice import choose
from .context import ContextHome
from .file import FileHome

__all__ = [
    "ContextHome",
    "FileHome",
    "Home",
    "Slot",
    "choose",
    "client_key",
]

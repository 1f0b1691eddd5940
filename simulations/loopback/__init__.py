"""An in-process Flower grid: real strategies and client apps, without Ray.

`LoopbackGrid` hands the messages of a real ``Strategy.start()`` to a real
``ClientApp`` in the same process, every one of them through its protobuf bytes.
With a policy of `Faults` it loses, repeats, delays and reorders messages, crashes
clients and takes their memory.
"""

from __future__ import annotations

from .faults import (
    DELIVERED,
    DUPLICATED,
    LOST,
    Copies,
    Crash,
    Fault,
    Faults,
    RandomFaults,
    ScriptedFaults,
    late,
)
from .grid import LoopbackGrid
from .records import Direction, Event, EventKind, MessageRecord

__all__ = [
    "DELIVERED",
    "DUPLICATED",
    "LOST",
    "Copies",
    "Crash",
    "Direction",
    "Event",
    "EventKind",
    "Fault",
    "Faults",
    "LoopbackGrid",
    "MessageRecord",
    "RandomFaults",
    "ScriptedFaults",
    "late",
]

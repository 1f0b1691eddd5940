"""EF21 with full gradients when messages, processes and memories are lost.

No Flower, no local training, and float64, so that what remains is the memories: two
ends that agree reach any precision, two that do not stop where they disagree.

``python -m simulations.lossy`` runs every problem with every fate.
"""

from __future__ import annotations

from .cases import FATES, SETTINGS, WAYS, Fate, Setting, run
from .commit_on_send import CommitOnSend
from .descent import Descent, descend
from .ends import Ends
from .settling import Settling

__all__ = [
    "FATES",
    "SETTINGS",
    "WAYS",
    "CommitOnSend",
    "Descent",
    "Ends",
    "Fate",
    "Setting",
    "Settling",
    "descend",
    "run",
]

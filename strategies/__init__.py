"""What runs inside a ServerApp: strategies, and the byte ledger."""

from __future__ import annotations

from .asynchronous import AsynchronousGossip
from .compressed import Compressed
from .consensus import Consensus
from .gossip import Gossip
from .ledger import Ledger

__all__ = ["AsynchronousGossip", "Compressed", "Consensus", "Gossip", "Ledger"]

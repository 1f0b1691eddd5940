"""What runs inside a ServerApp: a wrapper for strategies, and the byte ledger."""

from __future__ import annotations

from .compressed import Compressed
from .ledger import Ledger

__all__ = ["Compressed", "Ledger"]

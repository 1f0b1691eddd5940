"""What runs inside a ClientApp: mods that compress what a client sends, or mix it."""

from __future__ import annotations

from .consensus import ConsensusMod
from .homes import ContextHome, FileHome
from .mod import CompressionMod

__all__ = ["CompressionMod", "ConsensusMod", "ContextHome", "FileHome"]

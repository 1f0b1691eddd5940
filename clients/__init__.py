"""What runs inside a ClientApp: one mod that compresses what the client sends."""

from __future__ import annotations

from .homes import ContextHome, FileHome
from .mod import CompressionMod

__all__ = ["CompressionMod", "ContextHome", "FileHome"]

"""Models: one builder, and a table of what it builds."""

from __future__ import annotations

from .table import MODELS, build_model

__all__ = ["MODELS", "build_model"]

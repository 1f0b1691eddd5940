"""What compression costs, before training: tables of methods, tensors and models.

`python -m fl_lowrank` prints them.
"""

from __future__ import annotations

from .catalogue import EXAMPLES, catalogue, examples
from .files import largest, read_tensors
from .measuring import Row, measure
from .model import ModelReport, TensorRow, model_report
from .text import describe, method_table, rate_table, table

__all__ = [
    "EXAMPLES",
    "ModelReport",
    "Row",
    "TensorRow",
    "catalogue",
    "describe",
    "examples",
    "largest",
    "measure",
    "method_table",
    "model_report",
    "rate_table",
    "read_tensors",
    "table",
]

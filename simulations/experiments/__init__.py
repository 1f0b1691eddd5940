"""The experiments: tables of run configs, and nothing but tables."""

from __future__ import annotations

from .digits import DIGITS, DIGITS_COMPARE
from .experiment import Experiment, Run
from .fashion import (
    FASHION,
    FASHION_DOWNLINK,
    FASHION_METHODS,
    FASHION_PARTICIPATION,
)

EXPERIMENTS = {
    "digits": DIGITS,
    "digits-compare": DIGITS_COMPARE,
    "fashion": FASHION,
    "fashion-methods": FASHION_METHODS,
    "fashion-downlink": FASHION_DOWNLINK,
    "fashion-participation": FASHION_PARTICIPATION,
}

__all__ = ["EXPERIMENTS", "Experiment", "Run"]

"""What an inner strategy remembers from round to round."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_lowrank.errors import SettingError

from .inner import layers
from .packing import is_plain


class InnerState:
    """Finds out what changes in a strategy, and in those it wraps, while it trains.

    These are attributes that hold arrays (momenta, current arrays) and plain values
    that differ from those at the start (an adaptive clipping norm). Settings and
    functions are not saved: they are those that the strategy is made with.

    Parameters
    ----------
    strategy : Strategy
        Before its first round.

    Raises
    ------
    SettingError
        If it holds a state that cannot be saved.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._layers = list(layers(strategy))
        for layer in self._layers:
            if getattr(layer, "accountant", None) is not None:
                msg = (
                    f"Compressed: the privacy accountant of {type(layer).__name__} "
                    "cannot be saved; leave checkpoint= or accountant= out"
                )
                raise SettingError(msg)
        # Copies, since a list may grow in place.
        self._first = [
            {
                name: deepcopy(value)
                for name, value in vars(layer).items()
                if is_plain(value) and not _holds_arrays(value)
            }
            for layer in self._layers
        ]

    def plain(self) -> list[list[Any]]:
        """Give what has changed: the name of each layer's class, and its values."""
        return [
            [
                type(layer).__name__,
                {
                    name: value
                    for name, value in vars(layer).items()
                    if is_plain(value)
                    and (
                        _holds_arrays(value)
                        or name not in first
                        or value != first[name]
                    )
                },
            ]
            for layer, first in zip(self._layers, self._first, strict=True)
        ]

    def resume(self, plain: list[list[Any]]) -> None:
        """Set what `plain` gave.

        Raises
        ------
        SettingError
            If it is of another strategy.
        """
        wanted, found = [name for name, _ in plain], self._names
        if wanted != found:
            msg = (
                f"Compressed: the checkpoint was written with {' around '.join(wanted)}"
                f", found {' around '.join(found)}; resume with the same strategy"
            )
            raise SettingError(msg)
        for layer, (_, values) in zip(self._layers, plain, strict=True):
            vars(layer).update(values)

    @property
    def _names(self) -> list[str]:
        return [type(layer).__name__ for layer in self._layers]


def _holds_arrays(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_arrays, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_arrays, value))
    return isinstance(value, np.ndarray | torch.Tensor | ArrayRecord)

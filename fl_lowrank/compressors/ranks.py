"""How many columns a factorisation has: by number, or by a budget of numbers."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import SettingError
from ..types import Compressor, Shape

DEFAULT_RANK = 4
#: Texts come from the network: none may keep a client busy for ever.
MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Ranked(Compressor):
    """What all methods with columns share: one of these settings.

    Parameters
    ----------
    rank : int, optional
        Columns, at least 1; 4 if nothing is given.
    ratio : float, optional
        Numbers that are sent, over entries of the tensor, in (0, 1]: as many columns
        as fit, at least one.
    floats : int, optional
        Numbers that are sent for each tensor: as many columns as fit, at least one.
    """

    composable: ClassVar[bool] = True

    rank: int | None = None
    ratio: float | None = field(default=None, kw_only=True)
    floats: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        ways = self.ways()
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) > 1:
            found = " and ".join(f"{name}={value}" for name, value in given.items())
            msg = f"{self.name}: expected one of {', '.join(ways)}, found {found}"
            raise SettingError(msg)
        if self.rank is not None and self.rank < 1:
            msg = f"{self.name}: expected a rank of at least 1, found {self.rank}"
            raise SettingError(msg)
        if self.ratio is not None and not 0.0 < self.ratio <= 1.0:
            msg = f"{self.name}: expected a ratio in (0, 1], found {self.ratio}"
            raise SettingError(msg)
        if self.floats is not None and self.floats < 1:
            msg = f"{self.name}: expected floats of at least 1, found {self.floats}"
            raise SettingError(msg)

    def ways(self) -> dict[str, float | None]:
        """Give the settings of which one may be chosen."""
        return {"rank": self.rank, "ratio": self.ratio, "floats": self.floats}

    @staticmethod
    @abstractmethod
    def column_cost(shape: Shape) -> int:
        """Numbers that each column costs."""

    def columns(self, shape: Shape) -> int:
        """Columns for a tensor of this shape, whether or not so many pay."""
        budget = self.floats
        if self.ratio is not None:
            budget = math.floor(self.ratio * math.prod(shape))
        if budget is not None:
            return max(budget // max(self.column_cost(shape), 1), 1)
        return DEFAULT_RANK if self.rank is None else self.rank

    def pays(self, shape: Shape, columns: int) -> bool:
        """Whether so many columns have fewer numbers than the tensor."""
        return columns * self.column_cost(shape) < math.prod(shape)

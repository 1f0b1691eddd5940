"""Updates that are far too large to be true."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from fl_lowrank.errors import ProtocolError, SettingError

#: No update of one example is so long; sums of such ones are still finite in float32.
_IMPOSSIBLE = 1e18
_NUM_REMEMBERED = 1000


@dataclass
class NormLimit:
    """Refuses updates whose norm is far above the median of the last ones.

    First messages of a memory are compared with each other: those of feedbacks that
    send distances become much shorter afterwards. Norms are per example, in the
    units of the memory.

    Parameters
    ----------
    factor : float, optional
        So many medians are too much; without it only what is absurd by itself.
    """

    factor: float | None
    _first: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))
    _later: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))

    def __post_init__(self) -> None:
        if self.factor is not None and not self.factor > 1.0:
            msg = f"Compressed: expected max_norm above 1, found {self.factor}"
            raise SettingError(msg)

    @property
    def knows_nothing(self) -> bool:
        """Whether there is nothing yet to compare with."""
        return not self._first and not self._later

    def note(self, norm: float, *, first: bool) -> None:
        """Remember the norm of an update that may be compared with."""
        (self._first if first else self._later).append(norm)

    def check(self, norm: float, *, first: bool) -> None:
        """Refuse an update that is too long, and remember it if it is not.

        Raises
        ------
        ProtocolError
            If it is.
        """
        known = (self._first if first else self._later) or self._first or self._later
        usual = median(known) if known else math.inf
        most = _IMPOSSIBLE
        if self.factor is not None and usual > 0.0:
            most = min(most, self.factor * usual)
        if not norm <= most:
            msg = (
                f"the norm of its update is {norm:.3g} for each example, the median of "
                f"the last ones {usual:.3g}; more than {most:.3g} is left out"
            )
            raise ProtocolError(msg)
        self.note(norm, first=first)

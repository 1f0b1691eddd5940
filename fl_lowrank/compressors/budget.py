"""A byte budget instead of a setting: `Budget`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import registry, wire
from ..errors import SettingError
from ..rng import Rng
from ..types import (
    Compressor,
    Contractive,
    Guarantee,
    NoGuarantee,
    Payload,
    Shape,
    State,
)
from .allocation.fit import Sender, Share, fit
from .allocation.magnitudes import squared_error
from .allocation.plan import check_method, parts_of

_MOST_BYTES = 1 << 62


@dataclass(frozen=True)
class Budget(Compressor):
    """The least squared error within so many bytes.

    Under a rule of a whole model, the bytes are those of the whole message, whatever
    other rules send included; they are spent on all tensors of the rule where they
    help most (`fl_lowrank.allocate`). As a compressor of one tensor, the bytes are
    those of its message.

    ======== ===================================================================
    method   what is chosen for each tensor, or for several joined to a vector
    ======== ===================================================================
    dither   the step of ``ecsq``: about one absolute step for all (reverse
             water-filling)
    topk     how many entries ``topk(...) >> natural()`` sends
    lowrank  rank and precision of ``rsvd(...) >> ecsq(...)``, for matrices
    best     any of these
    ======== ===================================================================

    With ``dither`` the dead zone around 0 is chosen too: a wide one is sent as
    ``topk(...) >> ecsq(...)``, which finds that entries cluster in rows and columns.
    Where even the coarsest step, or one column, is too much, the largest entries are
    sent as with ``topk``; at least one always is.

    Guarantee: ``Contractive(8 / 9 / d)`` with ``topk`` and ``Contractive(1 / (3 d))``
    with ``dither``, since the largest entry is sent; in practice the error is far
    smaller. None with the other two.
    Wire cost: at most ``bytes``, and hardly less unless that is more than the finest
    settings need.

    Parameters
    ----------
    bytes : int
        Largest size of a message.
    method : str
        See above.

    Raises
    ------
    InputError
        While encoding, if not even one entry fits.
    """

    name: ClassVar[str] = "budget"
    joins: ClassVar[bool] = True

    bytes: int
    method: str = "dither"

    def __post_init__(self) -> None:
        check_method(self.name, self.method)
        if not 1 <= self.bytes <= _MOST_BYTES:
            msg = f"{self.name}: expected bytes in [1, 2^62], found {self.bytes}"
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Bound the part that is kept by the largest entry alone.

        Of d entries, let the j largest be rounded to levels k, n > 0 of them nonzero,
        by a step below twice the largest entry, and let y be these j in steps. Then
        ``<y, k> >= |k|^2 / 2`` and ``|y|^2 <= 1.5 <y, k> + (j - n) / 4``, so that the
        projection on k keeps ``1 / (j + 2)`` of their energy, which is at least j/d of
        all.
        """
        if self.method not in ("dither", "topk"):
            return NoGuarantee("no bound is known for coded factors")
        d = max(math.prod(shape), 1)
        return Contractive(8.0 / 9.0 / d if self.method == "topk" else 1.0 / 3.0 / d)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Try settings until the message just fits."""
        parts = parts_of([x], self.method)
        return fit(parts, self.bytes, _Sender(x, rng)).message, state


class _Sender(Sender[Payload]):
    """Makes messages of one tensor."""

    def __init__(self, x: Tensor, rng: Rng) -> None:
        self._x = x
        self._rng = rng

    def encode(self, shares: list[Share]) -> tuple[Payload, int]:
        """Encode by the only share."""
        ((_, compressor),) = shares
        payload, _ = compressor.encode(self._x, {}, self._rng)
        return payload, len(wire.pack(payload))

    def error(self, message: Payload, exponent: int) -> float:
        """Decode and compare."""
        return squared_error(registry.decode(message), self._x, exponent)

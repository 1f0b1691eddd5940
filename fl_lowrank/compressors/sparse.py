"""Few entries are sent: the largest (`TopK`, `Threshold`) or random ones (`RandK`).

References
----------
A. Beznosikov, S. Horvath, P. Richtarik, M. Safaryan, "On Biased Compression for
Distributed Learning", JMLR 2023, arXiv 2002.12410: Top-k, and random sparsification
with its constant. A. N. Sahu, A. Dutta, A. M. Abdelmoniem, T. Banerjee, M. Canini,
P. Kalnis, "Rethinking Gradient Sparsification as Total Error Minimization", NeurIPS
2021, arXiv 2108.00951: the hard threshold.

Differences: index sets are entropy coded, so that they cost about
``log2 C(d, k)`` bits rather than ``k log2 d``; survivors that are zero are not sent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..addends import Addend, Sparse
from ..errors import SettingError
from ..linalg import normalised, working_dtype
from ..rng import Rng
from ..types import (
    Coding,
    Compressor,
    Contractive,
    Exact,
    Field,
    Guarantee,
    Kind,
    Payload,
    Shape,
    State,
    Unbiased,
    check_input,
)
from .common import (
    check_keep,
    check_range,
    draw_seed,
    fault,
    keep_count,
    need,
    read_seed,
    settled,
)
from .selection import candidates

SPARSE = Kind(
    2, "sparse", ("indices", "values"), (Coding.INDICES, Coding.RAW), inner=("values",)
)
SEEDED = Kind(
    3, "seeded", ("seed", "values"), (Coding.VARINTS, Coding.RAW), inner=("values",)
)


def largest(values: Tensor, k: int) -> Tensor:
    """Positions of the ``k`` nonzero entries of largest magnitude, in increasing order.

    Ties go to the smaller position, so that every device chooses alike.
    """
    if k >= values.numel():
        return values.nonzero().reshape(-1)
    among = candidates(values, k)
    magnitude = values[among].abs()
    threshold = torch.topk(magnitude, k, sorted=False).values.min()
    if not threshold > 0:
        return among[magnitude > 0]
    chosen = magnitude > threshold
    missing = k - int(chosen.sum())
    chosen[(magnitude == threshold).nonzero().reshape(-1)[:missing]] = True
    return among[chosen]


def sparse_payload(x: Tensor, indices: Tensor, values: Tensor) -> Payload:
    """Put values at increasing positions of the flat form of a tensor like ``x``."""
    fields = {
        "indices": Field(Coding.INDICES, indices),
        "values": Field(Coding.RAW, values),
    }
    return Payload(SPARSE, tuple(x.shape), x.dtype, fields)


def _scatter(payload: Payload, indices: Tensor, values: Tensor) -> Tensor:
    """Put values into zeros."""
    out = torch.zeros(payload.numel, dtype=payload.dtype, device=values.device)
    out[indices] = _settled(payload, values)
    return out.reshape(payload.shape)


def _sparse(payload: Payload, indices: Tensor, values: Tensor) -> Sparse:
    return Sparse(indices, _settled(payload, values))


def _settled(payload: Payload, values: Tensor) -> Tensor:
    """Give values of a field, which are finite, the payload's dtype."""
    return values if values.dtype == payload.dtype else settled(payload, values)


@dataclass(frozen=True)
class Keep(Compressor):
    """What `TopK` and `RandK` share: how many entries are kept.

    Parameters
    ----------
    fraction : float, optional
        Share of the entries to keep, in (0, 1]; rounded up to at least one.
    k : int, optional
        Their number, instead of ``fraction``.
    """

    composable: ClassVar[bool] = True

    fraction: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        check_keep(self.name, self.fraction, self.k)

    def count(self, numel: int) -> int:
        """Entries kept of ``numel``."""
        return keep_count(self.fraction, self.k, numel)

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Entries kept."""
        return ((self.count(math.prod(shape)),),)


@dataclass(frozen=True)
class TopK(Keep):
    """Keep the entries of largest magnitude as they are.

    Guarantee: ``Contractive(k / d)``, attained when all magnitudes are equal.
    Wire cost: about ``log2 C(d, k)`` bits for the positions and k values in the
    input's dtype; ``topk(...) >> natural()`` sends about 2 bits for a value.

    Parameters
    ----------
    fraction : float, optional
        Share of the entries to keep, in (0, 1]; rounded up to at least one.
    k : int, optional
        Their number, instead of ``fraction``.
    """

    name: ClassVar[str] = "topk"
    norm_nonincreasing: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    def guarantee(self, shape: Shape) -> Guarantee:
        """Beznosikov et al. (2023), section 2.2: error at most 1 - k/d."""
        d = math.prod(shape)
        k = self.count(d)
        return Exact() if k == d else Contractive(k / d)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Select by magnitude."""
        del rng
        flat = check_input(self.name, x).reshape(-1)
        indices = largest(flat, self.count(flat.numel()))
        return sparse_payload(x, indices, flat[indices]), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Put the values into zeros."""
        return _scatter(payload, *_positions_and_values(payload))

    @classmethod
    def addend(cls, payload: Payload) -> Addend:
        """Add the survivors alone."""
        return _sparse(payload, *_positions_and_values(payload))


def _positions_and_values(payload: Payload) -> tuple[Tensor, Tensor]:
    indices, values = payload.tensor("indices"), payload.tensor("values")
    if indices.numel() != values.numel():
        what = f"{indices.numel()} positions for {values.numel()} values"
        raise fault(payload, what)
    return indices.to(values.device), values


@dataclass(frozen=True)
class Threshold(Compressor):
    """Keep the entries that are at least so large, and always the largest.

    Guarantee: with ``r = min(relative, 1)``, ``Contractive(1 - r^2 (d - 1) / d)``: what
    is dropped lies below r times the root mean square, and the largest entry holds at
    least ``1 / d`` of the squared norm. Approached when all entries but one lie just
    below. With ``value`` the same for ``r = 1``.
    Wire cost: as `TopK`, for as many entries as there are so large.

    Differences from Sahu et al. (2021), who fix ``value`` for the whole training so
    that much is sent while updates are large: ``relative`` needs no knowledge of the
    units of an update. The largest entry is kept, so that an error memory never waits
    for ever.

    Parameters
    ----------
    relative : float, optional
        Threshold in units of the root mean square of the entries, above 0.
    value : float, optional
        Threshold in the units of the tensor, instead of ``relative``: the scale of the
        input then matters.
    """

    name: ClassVar[str] = "threshold"
    norm_nonincreasing: ClassVar[bool] = True
    composable: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    relative: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.relative, self.value) if v is not None]
        if len(given) != 1 or not 0.0 < given[0] < math.inf:
            msg = (
                f"{self.name}: expected either relative or value, above 0, found "
                f"relative={self.relative} and value={self.value}; write "
                "threshold(relative=3.0)"
            )
            raise SettingError(msg)

    def guarantee(self, shape: Shape) -> Guarantee:
        """Bound what lies below the threshold."""
        d = math.prod(shape)
        if d <= 1:
            return Exact()
        r = min(self.relative or 1.0, 1.0)
        return Contractive(1.0 - r * r * (d - 1) / d)

    def inner_shapes(self, shape: Shape) -> tuple[Shape, ...]:
        """Every entry may be kept; how many are depends on the tensor."""
        return ((math.prod(shape),),)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Select by magnitude."""
        del rng
        flat = check_input(self.name, x).reshape(-1)
        work, peak = normalised(flat)
        size = work.abs()
        if self.relative is None:
            assert self.value is not None
            bound = self.value / peak if peak > 0.0 else 1.0
        else:
            mean = float(size.to(torch.float64).square().sum()) / max(size.numel(), 1)
            bound = self.relative * math.sqrt(mean)
        # The largest is 1 in these units.
        kept = size >= min(bound, 1.0)
        indices = (kept & (size > 0.0)).nonzero().reshape(-1)
        return sparse_payload(x, indices, flat[indices]), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Put the values into zeros."""
        return TopK.decode(payload)


@dataclass(frozen=True)
class RandK(Keep):
    """Keep random entries, scaled by d/k; the positions travel as a seed.

    Guarantee: ``Unbiased(zeta)`` with ``zeta = d / k`` exactly, for every input
    (Beznosikov et al., 2023). Inside error feedback use ``shrunk(randk(...))``.
    Wire cost: k values in the input's dtype and 8 bytes for the seed.

    Parameters
    ----------
    fraction : float, optional
        Share of the entries to keep, in (0, 1]; rounded up to at least one.
    k : int, optional
        Their number, instead of ``fraction``.
    """

    name: ClassVar[str] = "randk"

    def guarantee(self, shape: Shape) -> Guarantee:
        """Beznosikov et al. (2023): a uniform k-subset, scaled by d/k."""
        d = math.prod(shape)
        k = self.count(d)
        return Exact() if k == d else Unbiased(d / k)

    def encode(self, x: Tensor, state: State, rng: Rng) -> tuple[Payload, State]:
        """Draw the positions from a seed that the decoder will see."""
        flat = check_input(self.name, x).reshape(-1)
        d = flat.numel()
        k = self.count(d)
        check_range(self.name, flat, d / k if k else 1.0)
        seed = draw_seed(rng, "subset")
        indices = Rng(seed).subset(k, d, flat.device)
        fields = {
            "seed": Field(Coding.VARINTS, torch.tensor([seed])),
            "values": Field(Coding.RAW, flat[indices]),
        }
        return Payload(SEEDED, tuple(x.shape), x.dtype, fields), state

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        """Draw the same positions again."""
        return _scatter(payload, *_drawn_and_scaled(payload))

    @classmethod
    def addend(cls, payload: Payload) -> Addend:
        """Add the survivors alone."""
        return _sparse(payload, *_drawn_and_scaled(payload))


def _drawn_and_scaled(payload: Payload) -> tuple[Tensor, Tensor]:
    seed, values = read_seed(payload), payload.tensor("values")
    d, k = payload.numel, values.numel()
    need(k <= d and (k > 0 or d == 0), payload, f"{k} values")
    work = values.to(working_dtype(payload.dtype)) * (d / k if k else 1.0)
    need(bool(torch.isfinite(work).all()), payload, "scaling overflows")
    return Rng(seed).subset(k, d, values.device), work

"""What a byte budget is spent on: settings for each tensor of an update.

``budget(bytes=...)`` does this for every message; here it can be looked at before
anything is sent, from an update (`settings`) or from statistics of one, which are small
and tell the whole curve of error over bytes (`statistics`, `predicted`).

>>> import torch
>>> import fl_lowrank as fll
>>> update = {"a": torch.linspace(-1, 1, 600).reshape(20, 30), "b": torch.ones(7)}
>>> found = fll.allocate.settings(update, 300)
>>> sum(part.num_bytes for part in found) <= 300
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import decoders, wire
from .compressors import Budget
from .compressors.allocation.plan import Part, parts_of, plan
from .grouping import join, layout_of
from .messages import read_payloads
from .model import ModelCodec
from .rng import Rng
from .types import Compressor


@dataclass(frozen=True)
class Allotment:
    """What one part of an update gets.

    Attributes
    ----------
    names : tuple[str, ...]
        Tensors that travel together.
    compressor : Compressor
        How; as one vector, if they are several.
    num_bytes : float
        Of their body in the message; the message has some bytes more.
    error : float
        Squared error, in the units of the update squared.
    """

    names: tuple[str, ...]
    compressor: Compressor
    num_bytes: float
    error: float


@dataclass(frozen=True)
class Statistics:
    """What `predicted` needs of an update: histograms, and spectra for low rank.

    Attributes
    ----------
    names : tuple[str, ...]
        Of the tensors.
    parts : tuple[Part, ...]
        One for each.
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...]


def settings(
    update: Mapping[str, Tensor],
    num_bytes: int,
    method: str = "dither",
    rng: Rng | None = None,
) -> list[Allotment]:
    """Choose settings whose message has at most ``num_bytes`` bytes.

    Parameters
    ----------
    update : Mapping[str, Tensor]
        Floating-point tensors; others are given as they travel, exactly.
    num_bytes : int
        Of the whole message.
    method : str
        See `Budget`.
    rng : Rng, optional
        Of the draws, where there are any.

    Returns
    -------
    list of Allotment
        With measured sizes and errors.

    Raises
    ------
    InputError
        If not even one entry fits, or a tensor is not finite.
    """
    codec = ModelCodec(Budget(bytes=num_bytes, method=method))
    groups, data, _ = codec.fitted(update, {}, rng or Rng(0))
    found = []
    payloads = read_payloads(data, layout_of(update))
    for group, (names, payload) in zip(groups, payloads, strict=True):
        x = join([update[name] for name in names]).to(torch.float64)
        off = decoders.decode(payload).to(x) - x
        size = len(wire.pack_body(payload))
        error = float(off.square().sum())
        found.append(Allotment(names, group.compressor, size, error))
    return found


def statistics(update: Mapping[str, Tensor], method: str = "dither") -> Statistics:
    """Count magnitudes, and find spectra if the method is of low rank.

    Raises
    ------
    InputError
        If a tensor is not of finite floating-point numbers.
    """
    return Statistics(tuple(update), tuple(parts_of(list(update.values()), method)))


def predicted(found: Statistics, num_bytes: int) -> list[Allotment]:
    """Choose settings of about so many bytes, without encoding anything.

    Returns
    -------
    list of Allotment
        With predicted sizes, within some percent, and errors.
    """
    return [
        Allotment(
            tuple(found.names[i] for i in part.members),
            choice.compressor(1.0),
            choice.bits / 8.0,
            math.ldexp(choice.error, 2 * part.exponent),
        )
        for part, choice in plan(found.parts, 8.0 * num_bytes)
    ]

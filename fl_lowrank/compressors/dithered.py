"""Messages of subtractive dither: levels whose noise both ends draw.

The noise u of an entry is 32 bits of a counter hash, as a number in [-1/2, 1/2]; the
level is ``k = round(q + u)``, and the reader computes ``k - u`` times the scale. Two
things are left to the sender, and said in the head of the message (seed, fold, lowest
level, levels of a pair):

- levels are folded, ``sign(u) k``: those of the sign of u are more frequent if few are
  certain, so this uses one bit of what the reader knows;
- two levels make one symbol.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rng import Rng
from ..types import Coding, Field, Kind, Payload
from .common import draw_seed, finish, need
from .dithering import scale_tensor
from .levels import Scaled, blocks, to_levels

DITHERED = Kind(
    14,
    "dithered",
    ("head", "scale", "levels"),
    (Coding.VARINTS, Coding.RAW, Coding.SYMBOLS),
)

_SAMPLE_SIZE = 1 << 14  # levels on which it is tried whether folding pays
#: With so many levels for each possible pair, pairs are coded as one symbol each: that
#: halves the steps of the entropy coder, and the larger table does not count.
_PER_PAIR = 1024
#: Makes numbers in [-1/2, 1/2] of patterns of 32 bits, the same on every device.
_UNIT = 2.0**-32


def _fold(levels: Tensor, bits: Tensor) -> Tensor:
    """Turn levels, in place, to count in the direction of the noise; or back."""
    return levels.mul_((bits >> 31).bitwise_or_(1))


def _folding_pays(sample: Scaled, step: float, noise: Rng) -> bool:
    """Whether levels have less entropy when folded, to judge by a sample."""
    if not sample.peak > 0.0:
        return False
    q = sample.part(slice(None)).div_(step)
    bits = noise.bits32(q.numel(), q.device)
    plain = q.add_(bits.to(q.dtype), alpha=_UNIT).round_().clamp_(-32, 32)
    before = _nats(plain)
    return _nats(_fold(plain, bits)) < 0.997 * before


def _nats(levels: Tensor) -> float:
    """Entropy of levels from -32 to 32."""
    counts = torch.bincount(levels.to(torch.int64) + 32).to(torch.float64)
    return float(torch.special.entr(counts / counts.sum()).sum())


def encode_dithered(
    x: Scaled, like: Tensor, step: float, factor: float, rng: Rng
) -> Payload:
    """Round with noise.

    Parameters
    ----------
    x : Scaled
        The tensor.
    like : Tensor
        The same, for its shape and dtype.
    step : float
        Distance of levels over the root mean square.
    factor : float
        What the reader multiplies by, beside the step.
    rng : Rng
        Gives the seed of the noise.

    Returns
    -------
    Payload
        Of kind DITHERED.
    """
    seed = draw_seed(rng, "dither")
    noise, unit = Rng(seed), step * x.rms
    folded = _folding_pays(x.sample(_SAMPLE_SIZE), unit, noise)

    def with_noise(q: Tensor, block: slice) -> Tensor:
        bits = noise.bits32(q.numel(), q.device, block.start)
        k = q.add_(bits.to(q.dtype), alpha=_UNIT).round_()
        return _fold(k, bits) if folded else k

    levels, low, base = _paired(to_levels(x, unit, with_noise))
    fields = {
        "head": Field(Coding.VARINTS, torch.tensor([seed, int(folded), low, base])),
        "scale": Field(Coding.RAW, scale_tensor(like, factor * unit * x.peak)),
        "levels": Field(Coding.SYMBOLS, levels),
    }
    return Payload(DITHERED, tuple(like.shape), like.dtype, fields)


def _paired(levels: Tensor) -> tuple[Tensor, int, int]:
    """Give the symbols to code, the lowest level and their number; zeros if plain."""
    low, high = map(int, levels.aminmax()) if levels.numel() else (0, 0)
    base = high - low + 1
    if base < 2 or base**2 * _PER_PAIR > levels.numel():
        return levels, 0, 0
    if levels.numel() % 2:
        levels = torch.cat((levels, levels.new_tensor([low])))
    first, second = levels.reshape(-1, 2).unbind(1)
    return (first - low).mul_(base).add_(second).sub_(low), low, base


def _unpaired(payload: Payload, symbols: Tensor, low: int, base: int) -> Tensor:
    """Give the levels of pairs in float32, which holds them."""
    numel = payload.numel
    ok = base >= 2 and base**2 * _PER_PAIR <= numel and abs(low) < 1 << 24
    need(ok, payload, f"pairs of {base} levels from {low}")
    need(symbols.numel() == (numel + 1) // 2, payload, f"{symbols.numel()} pairs")
    least, most = map(int, symbols.aminmax())
    need(0 <= least <= most < base**2, payload, f"pairs {least} to {most}")
    levels = torch.arange(low, low + base, dtype=torch.float32, device=symbols.device)
    pairs = torch.cartesian_prod(levels, levels)
    return pairs.index_select(0, symbols).view(-1)[:numel]


def decode_dithered(payload: Payload) -> Tensor:
    """Draw the noise again, subtract it, scale.

    Raises
    ------
    WireError
        If the fields contradict each other.
    """
    head, scale = payload.tensor("head").tolist(), payload.tensor("scale")
    need(len(head) == 4 and head[0] >= 0 and head[1] in (0, 1), payload, "no head")
    need(scale.numel() == 1 and scale.is_floating_point(), payload, "no scale")
    seed, folded, low, base = head
    levels = payload.tensor("levels")
    if base:
        levels = _unpaired(payload, levels, low, base)
    need(levels.numel() == payload.numel, payload, f"{levels.numel()} levels")
    out, noise = levels.to(scale.dtype), Rng(seed)
    for block in blocks(payload.numel, out.device):
        bits = noise.bits32(block.stop - block.start, out.device, block.start)
        part = _fold(out[block], bits) if folded else out[block]
        part.sub_(bits.to(part.dtype), alpha=_UNIT).mul_(scale.to(part.device))
    return finish(payload, out)

"""Randomness as an argument: keyed streams from a counter hash.

An `Rng` is a value, a 64-bit key. It holds no position: the same stream asked
twice gives the same numbers, and independent draws come from `Rng.child`. So the
order of clients, a retried message or the placement of a process change nothing.

The numbers are a hash of (key, counter): two rounds of the 32-bit mixer by C.
Wellons ("lowbias32", 2018, public domain constants) in integer arithmetic alone,
so they are the same on every device, thread count and release. That makes
them fit for draws that both ends of a wire repeat. They are not for cryptography.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import SettingError

_CHUNK = 1 << 16  # entries hashed at a time on a CPU: the work stays in its cache
_MIXER = ((16, 0x21F0AAAD), (15, 0xD35A2D97), (15, 1))  # shift right, then multiply


def _signed(value: int) -> int:
    """Give the 32-bit pattern ``value`` as the signed number that int32 holds."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _hash_host(first: int, key: int, out: npt.NDArray[np.uint32]) -> None:
    """Fill ``out`` with the hash of the counters from ``first`` on."""
    size = min(_CHUNK, out.size)
    scratch, counters = np.empty(size, np.uint32), np.arange(size, dtype=np.uint32)
    for begin in range(0, out.size, _CHUNK):
        part = out[begin : begin + _CHUNK]
        shifted = scratch[: part.size]
        np.add(counters[: part.size], np.uint32(first + begin), out=part)
        for half in (key & 0xFFFFFFFF, key >> 32):
            part ^= np.uint32(half)
            for shift, factor in _MIXER:
                np.right_shift(part, np.uint32(shift), out=shifted)
                part ^= shifted
                if factor != 1:
                    part *= np.uint32(factor)


def _hash_device(first: int, key: int, count: int, device: torch.device) -> Tensor:
    """Do the same with torch, whose int32 shifts keep the sign: hence the masks."""
    h = torch.arange(first, first + count, device=device).to(torch.int32)
    for half in (key & 0xFFFFFFFF, key >> 32):
        h ^= _signed(half)
        for shift, factor in _MIXER:
            h ^= (h >> shift) & ((1 << (32 - shift)) - 1)
            h *= _signed(factor)
    return h


@dataclass(frozen=True)
class Rng:
    """A stream of random numbers, given by its key alone.

    Attributes
    ----------
    key : int
        64 bits.
    """

    key: int

    def child(self, *keys: int | str) -> Rng:
        """Give the stream for ``keys``, independent of this one and its others."""
        return stream(self.key, *keys)

    def bits32(
        self, count: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Tensor:
        """Draw ``count`` int32 patterns, uniform over all 2^32.

        ``start`` jumps: ``bits32(n, start=s)`` is ``bits32(s + n)[s:]``. The
        counters, ``start + count``, end at 2^32 (`SettingError` beyond).
        """
        if start + count > 1 << 32:
            msg = (
                f"Rng.bits32: expected counters below 2^32, found {start + count}; "
                "take a child stream for each block"
            )
            raise SettingError(msg)
        device = torch.device(device)
        if device.type != "cpu":
            return _hash_device(start, self.key, count, device)
        out = np.empty(count, dtype=np.uint32)
        _hash_host(start, self.key, out)
        return torch.from_numpy(out.view(np.int32))

    def uniform(
        self, count: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Tensor:
        """Draw float32 numbers in [0, 1), multiples of 2^-24; ``start`` jumps."""
        bits = self.bits32(count, device, start)
        return ((bits >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)

    def normal(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw float32 standard normal numbers (Box-Muller).

        The logarithm and cosine may differ in the last bit between devices: use
        it only where one end draws.
        """
        count = 1
        for n in shape:
            count *= n
        half = (count + 1) // 2
        u = self.uniform(2 * half, device)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:half]))
        angle = u[half:] * (2.0 * torch.pi)
        pair = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)))
        return pair[:count].reshape(shape)

    def subset(self, k: int, d: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw ``k`` of ``d`` positions without replacement, in increasing order.

        The ``k`` smallest of ``d`` distinct random numbers: uniform over all
        subsets up to ties of 32 bits, which go to the smaller position.
        """
        draws = self.bits32(d, device).to(torch.int64)
        draws.mul_(1 << 31).add_(torch.arange(d, device=device))
        chosen = torch.topk(draws, k, largest=False, sorted=False).indices
        return chosen.sort().values


def stream(seed: int, *keys: int | str) -> Rng:
    """Make the stream for a seed and any keys, such as (client, ticket, tensor).

    Different keys give independent streams; ``stream(s, "a", 1)`` is the same in
    every process. Never key by run or node ids of Flower, which are new in each run.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update((seed & (2**64 - 1)).to_bytes(8, "little"))
    for key in keys:
        part = key.encode() if isinstance(key, str) else _int_bytes(key)
        tag = b"s" if isinstance(key, str) else b"i"
        digest.update(tag + len(part).to_bytes(4, "little") + part)
    return Rng(int.from_bytes(digest.digest(), "little"))


def _int_bytes(value: int) -> bytes:
    return value.to_bytes(max(1, (value.bit_length() + 8) // 8), "little", signed=True)

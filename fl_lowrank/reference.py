"""One model that a server and all its clients follow, so that differences suffice.

With the model x and the reference w, both ends compute ``w + D(x - w)``: the sender
from the bytes of D that it has just made, the receiver from the same bytes. What D
leaves out stays in ``x - w`` and is sent later. This is EF21-P of K. Gruntkowska,
A. Tyurin, P. Richtarik, "EF21-P and Friends: Improved Theoretical Communication
Complexity for Distributed Optimization with Bidirectional Compression", ICML 2023,
arXiv 2209.15218, algorithm 1; there w moves in every round.

References are tensors in the dtypes of the model. Moving one is a sum on the CPU, in
float32 (float64 for such tensors), rounded once: elementwise compressors and sparse
ones give the same bits everywhere. Products of factors may differ in the last bit from
one kind of processor to another, which `fingerprint` tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .broadcast import MAX_LINKS, Link
from .errors import ProtocolError
from .model import Layout, ModelCodec

Model = Mapping[str, Tensor]


def fingerprint(tensors: Model) -> int:
    """Give 64 bits that are other ones for any other names, shapes, dtypes or bits.

    Never 0. A hash (BLAKE2b) of all bytes: about a millisecond for 250,000 numbers.
    """
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in tensors.items():
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest(), "little") or 1


def difference(model: Model, reference: Model, layout: Layout) -> dict[str, Tensor]:
    """Give ``model - reference`` in the dtypes of the layout."""
    return {
        name: model[name].to(t.dtype) - reference[name].to(t.dtype)
        for name, t in layout.items()
    }


def moved(reference: Model, data: bytes, layout: Layout) -> dict[str, Tensor]:
    """Add what a payload holds; the reference itself is not changed.

    Raises
    ------
    WireError
        If the bytes are not exactly one update of this layout.
    """
    change = ModelCodec.decode(data, layout)
    return {
        name: (reference[name].to(t.dtype) + change[name]).to(reference[name].dtype)
        for name, t in layout.items()
    }


def followed(
    reference: Model, held: int, links: Sequence[Link], end: int, layout: Layout
) -> dict[str, Tensor]:
    """Bring a reference to where links lead.

    Parameters
    ----------
    reference : Model
        What the client holds.
    held : int
        Its fingerprint. It may stand anywhere in the chain: what a client has missed,
        and what the server does not know that it has, cost nothing but bytes.
    links : sequence of Link
        One after the other.
    end : int
        Fingerprint of the reference after all of them.
    layout : Layout
        Of the payloads.

    Raises
    ------
    ProtocolError
        If the reference is none of the chain, or does not become the announced one.
    WireError
        If a payload is damaged.
    """
    chain = [*(link.before for link in links), end]
    if held not in chain:
        msg = (
            f"the model that it holds, {held:016x}, is none of the {len(chain)} that "
            "this message continues; the server sends the whole model the next time"
        )
        raise ProtocolError(msg)
    start = len(chain) - 1 - chain[::-1].index(held)
    tensors = dict(reference)
    for link in links[start:]:
        tensors = moved(tensors, link.data, layout)
    if start < len(links) and (found := fingerprint(tensors)) != end:
        msg = (
            f"following the model gives {found:016x}, expected {end:016x}; this "
            "machine computes otherwise than the server's, or a memory is damaged; "
            "the server sends the whole model the next time"
        )
        raise ProtocolError(msg)
    return tensors


@dataclass
class Chain:
    """The sender's reference, and how to get there from earlier ones.

    Attributes
    ----------
    tensors : dict
        The reference.
    links : list of Link
        The last moves, together of at most as many bytes as the reference.
    end : int
        Fingerprint of the reference.
    """

    tensors: dict[str, Tensor]
    links: list[Link] = field(default_factory=list)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.end = fingerprint(self.tensors)

    @property
    def num_bytes(self) -> int:
        """Size of the reference as a whole."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def move(self, data: bytes, layout: Layout) -> None:
        """Add a payload to the reference, and remember it for those who miss it.

        Raises
        ------
        WireError
            If it cannot be decoded, as a sketch that is too small.
        """
        tensors = moved(self.tensors, data, layout)
        end = fingerprint(tensors)
        if end == self.end:
            return
        self.links.append(Link(self.end, data))
        self.tensors, self.end = tensors, end
        rest = self.num_bytes
        for place in reversed(range(len(self.links))):
            rest -= len(self.links[place].data)
            if rest < 0 or len(self.links) - place > MAX_LINKS:
                del self.links[: place + 1]
                return

    def since(self, held: int) -> tuple[Link, ...] | None:
        """Give what leads here from a reference; None if only the whole one will do."""
        if held == self.end:
            return ()
        starts = [link.before for link in self.links]
        if held not in starts:
            return None
        return tuple(self.links[len(starts) - 1 - starts[::-1].index(held) :])

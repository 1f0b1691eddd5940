"""What a server sends in place of a model: how a client gets there from what it holds.

A head with a CRC-32, then three kinds of payload, each with a checksum of its own:

=========  =========================================================================
links      move the reference of the client, one after the other, to the server's
``step``   leads from there to the model of this message, and is not remembered;
           empty where the model is the reference itself
``exact``  arrays that travel exactly
=========  =========================================================================

A client that holds no reference, or not one of these, needs the reference as a whole.
Then it stands as ordinary arrays beside a broadcast without links.

References are told apart by what is in them (`fl_lowrank.reference.fingerprint`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .envelope import VERSION, checked, sealed
from .errors import WireError
from .framing import Reader

#: Decoding each costs a pass over the model, however few bytes it has.
MAX_LINKS = 256

_MAGIC = b"FD"
_HEAD = struct.Struct("<2sBBQQHQQ")
_LINK = struct.Struct("<QQ")
_CRC_BYTES = 4


@dataclass(frozen=True)
class Link:
    """One move of the reference.

    Attributes
    ----------
    before : int
        Fingerprint of the reference that it starts from.
    data : bytes
        What is added to it, as `ModelCodec` writes it.
    """

    before: int
    data: bytes


@dataclass(frozen=True)
class Broadcast:
    """A message of the downlink.

    Attributes
    ----------
    reference : int
        Fingerprint of the reference after all links.
    model_bytes : int
        Size of the model; tells where a client keeps such a one.
    is_whole : bool
        The reference stands beside it as arrays, and there are no links.
    links : tuple of Link
        From the oldest reference that the server takes the client to hold.
    step, exact : bytes
        See the module.
    """

    reference: int
    model_bytes: int
    is_whole: bool = False
    links: tuple[Link, ...] = ()
    step: bytes = b""
    exact: bytes = b""

    def pack(self) -> bytes:
        """Write head, checksum and payloads."""
        head = _HEAD.pack(
            _MAGIC,
            VERSION,
            int(self.is_whole),
            self.reference,
            self.model_bytes,
            len(self.links),
            len(self.step),
            len(self.exact),
        )
        table = [_LINK.pack(link.before, len(link.data)) for link in self.links]
        payloads = [*(link.data for link in self.links), self.step, self.exact]
        return b"".join([sealed(b"".join([head, *table])), *payloads])

    @staticmethod
    def unpack(data: bytes) -> Broadcast:
        """Read a broadcast; `WireError` if it is anything else."""
        num_links = 0
        if len(data) >= _HEAD.size:
            num_links = _HEAD.unpack_from(data)[5]
        size = _HEAD.size + num_links * _LINK.size
        head = checked(data[: size + _CRC_BYTES], _MAGIC, size, size)
        _, _, flags, reference, model_bytes, _, step, exact = _HEAD.unpack_from(head)
        if flags > 1 or (flags and num_links) or num_links > MAX_LINKS:
            msg = f"downlink: flags {flags} with {num_links} links make no sense"
            raise WireError(msg)
        reader = Reader(data, size + _CRC_BYTES)
        links = tuple(
            Link(before, reader.take(length))
            for before, length in _LINK.iter_unpack(head[_HEAD.size :])
        )
        found = Broadcast(
            reference,
            model_bytes,
            bool(flags),
            links,
            reader.take(step),
            reader.take(exact),
        )
        reader.finish()
        return found

"""The fixed heads of requests and replies.

A request (server to client) and a reply (client to server) each start with a fixed
binary head: magic, its own version, then numbers, and end with a CRC-32. Payload
bytes hold nothing of the protocol.

========  ==========================================================================
``fid``   the training, 128 random bits; memory is keyed by it and the client key
``epoch`` random 64 bits, new at every global reset of the memories
``ticket``   ``(inc, seq)``: start of the server and number of the request
``applied``  id of this node's last turn that the server has applied; 0 for none
``base``  id of the last turn that the client's memory holds; 0 for an empty memory
``turn``  random 64 bits, the id of the turn that a reply carries
========  ==========================================================================
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TypeAlias

from .errors import SettingError, VersionError, WireError
from .framing import Buffer

#: Type of the array that carries a reply; the number is the major version.
STYPE = "fl-lowrank/1"
#: Key of the request's bytes in the message's ConfigRecord.
REQUEST_KEY = "fl-lowrank"
#: Metric of a reply: gradients that were taken to find importance weights.
GRADIENTS_KEY = "extra-gradients"
VERSION = 1

Ticket: TypeAlias = tuple[int, int]

_MAX_TEXT = 8192
_MAX_EXACT = 256  # patterns, each of which is held against each name of a model
_REQUEST = struct.Struct("<2sBB16sQQQQQdd")
_REPLY = struct.Struct("<2sBB16sQQQQQdI")
_CRC = struct.Struct("<I")

HELLO, TRAIN, EVALUATE = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """What the server asks of a client.

    Attributes
    ----------
    purpose : int
        `HELLO` (say who you are), `TRAIN` or `EVALUATE`.
    fid : bytes
        16 bytes.
    epoch, applied : int
        See the module.
    ticket : tuple of int
        Grows with every request of a training.
    draws : int
        64 bits from which the client's random numbers of this turn are derived.
    scale : float
        Updates are divided by it before they are remembered: the local step.
    deadline : float
        Seconds since 1970 after which the reply is of no use.
    codec, feedback : str
        Texts of the uplink.
    weight_key : str
        Name of the number of examples in the reply's metrics.
    exact : tuple of str
        Patterns of arrays that travel exactly.
    """

    purpose: int
    fid: bytes
    epoch: int
    ticket: Ticket
    applied: int
    draws: int
    scale: float
    deadline: float
    codec: str = ""
    feedback: str = "plain"
    weight_key: str = "num-examples"
    exact: tuple[str, ...] = ()

    def pack(self) -> bytes:
        """Write head, texts and checksum; `SettingError` for what cannot be read."""
        texts = (self.codec, self.feedback, self.weight_key, *self.exact)
        joined = "\0".join(texts).encode()
        if len(joined) > _MAX_TEXT or any("\0" in text for text in texts):
            msg = (
                f"request: expected texts of at most {_MAX_TEXT} bytes in all and "
                f"without NUL, found {len(joined)} bytes; shorten codec or exact"
            )
            raise SettingError(msg)
        if len(self.exact) > _MAX_EXACT:
            msg = (
                f"request: expected at most {_MAX_EXACT} patterns of exact arrays, "
                f"found {len(self.exact)}; use wildcards"
            )
            raise SettingError(msg)
        head = _REQUEST.pack(
            b"FQ",
            VERSION,
            self.purpose,
            _checked_fid(self.fid),
            self.epoch,
            *self.ticket,
            self.applied,
            self.draws,
            self.scale,
            self.deadline,
        )
        return sealed(head + joined)

    @staticmethod
    def unpack(data: bytes) -> Request:
        """Read a request; `WireError` if it is anything else."""
        body = checked(data, b"FQ", _REQUEST.size, _REQUEST.size + _MAX_TEXT)
        _, _, purpose, fid, epoch, inc, seq, applied, draws, scale, deadline = (
            _REQUEST.unpack_from(body)
        )
        try:
            texts = body[_REQUEST.size :].decode().split("\0")
        except UnicodeDecodeError as error:
            msg = "request: its texts are not UTF-8"
            raise WireError(msg) from error
        fits = 3 <= len(texts) <= 3 + _MAX_EXACT
        if not fits or purpose not in (HELLO, TRAIN, EVALUATE):
            msg = f"request: purpose {purpose} with {len(texts)} texts makes no sense"
            raise WireError(msg)
        if not (0.0 < scale < float("inf")) or deadline != deadline:
            msg = f"request: scale {scale} or deadline {deadline} is no usable number"
            raise WireError(msg)
        return Request(
            purpose,
            fid,
            epoch,
            (inc, seq),
            applied,
            draws,
            scale,
            deadline,
            texts[0],
            texts[1],
            texts[2],
            tuple(texts[3:]),
        )


@dataclass(frozen=True)
class Reply:
    """Head of what a client sends back; the payload's two parts follow it.

    Attributes
    ----------
    fid, epoch, ticket
        Of the request that is answered.
    base : int
        Turn that the memory held before this one.
    turn : int
        Id of this turn.
    encode_seconds : float
        What encoding took.
    error_dropped : bool
        The client gave up an error that it could not deliver for too long.
    lossy, exact : Buffer
        The compressed update, and the arrays that travel exactly; read in place.
    """

    fid: bytes
    epoch: int
    ticket: Ticket
    base: int
    turn: int
    encode_seconds: float
    error_dropped: bool
    lossy: Buffer
    exact: Buffer

    def pack(self) -> bytes:
        """Write the head, its checksum, and the payloads."""
        head = _REPLY.pack(
            b"FR",
            VERSION,
            int(self.error_dropped),
            _checked_fid(self.fid),
            self.epoch,
            *self.ticket,
            self.base,
            self.turn,
            self.encode_seconds,
            len(self.lossy),
        )
        return b"".join((sealed(head), self.lossy, self.exact))

    @staticmethod
    def unpack(data: bytes) -> Reply:
        """Read a reply; `WireError` if it is anything else."""
        end = _REPLY.size + _CRC.size
        head = checked(data[:end], b"FR", _REPLY.size, _REPLY.size)
        _, _, flags, fid, epoch, inc, seq, base, turn, seconds, length = _REPLY.unpack(
            head
        )
        rest = memoryview(data)[end:]
        if length > len(rest):
            msg = f"reply: announces {length} bytes, {len(rest)} are there; truncated"
            raise WireError(msg)
        if flags > 1 or turn == 0 or not 0.0 <= seconds < float("inf"):
            msg = f"reply: turn {turn} or encode time {seconds} is no usable number"
            raise WireError(msg)
        return Reply(
            fid,
            epoch,
            (inc, seq),
            base,
            turn,
            seconds,
            bool(flags & 1),
            rest[:length],
            rest[length:],
        )


def _checked_fid(fid: bytes) -> bytes:
    """Refuse what `struct` would silently cut or fill."""
    if len(fid) != 16:
        msg = f"envelope: expected a training id of 16 bytes, found {len(fid)}"
        raise SettingError(msg)
    return fid


def sealed(body: bytes) -> bytes:
    """Put the checksum behind a head."""
    return body + _CRC.pack(zlib.crc32(body))


def checked(data: bytes, magic: bytes, least: int, most: int) -> bytes:
    """Check length, magic, version and checksum; gives the data without the last."""
    body, crc = data[: -_CRC.size], data[-_CRC.size :]
    if not least <= len(body) <= most or body[:2] != magic:
        msg = (
            f"envelope: expected {magic!r} and {least} to {most} bytes, found "
            f"{body[:2]!r} and {len(body)}; was it sent by fl-lowrank?"
        )
        raise WireError(msg)
    if body[2] != VERSION:
        msg = (
            f"envelope: expected version {VERSION}, found {body[2]}; install the same "
            "major version of fl-lowrank on both ends"
        )
        raise VersionError(msg)
    if _CRC.pack(zlib.crc32(body)) != crc:
        msg = "envelope: checksum does not match; the message was damaged"
        raise WireError(msg)
    return body

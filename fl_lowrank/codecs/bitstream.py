"""A short string of bits with Elias-gamma and Rice codes, for small tables."""

from __future__ import annotations

from ..errors import WireError

_MAX_ZEROS = 63  # longest prefix of a gamma code: values below 2**64


class BitWriter:
    """Collects codes and gives them out as bytes, the first bit highest."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def fixed(self, value: int, width: int) -> None:
        """Append `value` in `width` bits."""
        if width:
            self._parts.append(f"{value:0{width}b}")

    def gamma(self, value: int) -> None:
        """Append the Elias-gamma code of ``value >= 1``."""
        digits = f"{value:b}"
        self._parts.append("0" * (len(digits) - 1) + digits)

    def rice(self, value: int, width: int) -> None:
        """Append ``value >= 0``: the part above `width` bits in unary, the rest."""
        self._parts.append("0" * (value >> width) + "1")
        self.fixed(value & ((1 << width) - 1), width)

    def to_bytes(self) -> bytes:
        """Return all bits, padded with zeros to whole bytes."""
        digits = "".join(self._parts)
        size = -(-len(digits) // 8)
        return int(digits.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


class BitReader:
    """Reads what :class:`BitWriter` wrote, strictly.

    Parameters
    ----------
    data : bytes
        All bytes of the stream.
    """

    def __init__(self, data: bytes) -> None:
        size = 8 * len(data)
        self._digits = f"{int.from_bytes(data, 'big'):0{size}b}" if size else ""
        self._pos = 0

    def fixed(self, width: int) -> int:
        """Read `width` bits."""
        end = self._pos + width
        if end > len(self._digits):
            raise WireError(
                f"BitReader: expected {width} more bits, found "
                f"{len(self._digits) - self._pos}; the data are cut or damaged"
            )
        value = int(self._digits[self._pos : end] or "0", 2)
        self._pos = end
        return value

    def gamma(self) -> int:
        """Read an Elias-gamma code: an integer from 1 on, of at most 64 bits."""
        zeros = self._zeros()
        if zeros > _MAX_ZEROS:
            raise WireError(
                f"BitReader: expected a gamma code of at most 64 bits, found "
                f"{zeros + 1}; the data are damaged"
            )
        return (1 << zeros) | self.fixed(zeros)

    def rice(self, width: int) -> int:
        """Read a Rice code whose low part has `width` bits."""
        return self._zeros() << width | self.fixed(width)

    def finish(self) -> None:
        """Raise unless only the zeros of the last byte are left."""
        rest = self._digits[self._pos :]
        if len(rest) > 7 or "1" in rest:
            raise WireError(
                f"BitReader: expected the end of the bits, found {len(rest)} more; "
                "the data are extended or damaged"
            )

    def _zeros(self) -> int:
        """Read zeros and the one behind them; return how many zeros."""
        end = self._digits.find("1", self._pos)
        if end < 0:
            raise WireError(
                "BitReader: expected the end of a unary code, found the end of the "
                "bits; the data are cut or damaged"
            )
        zeros = end - self._pos
        self._pos = end + 1
        return zeros

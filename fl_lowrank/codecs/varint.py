"""Single integers: unsigned LEB128 (seven bits a byte, lowest first) and zigzag."""

from __future__ import annotations

from ..errors import InputError, WireError

_MAX_BYTES = 10  # ceil(64 / 7)


def write_varint(value: int) -> bytes:
    """Write an unsigned integer of at most 64 bits as LEB128.

    Parameters
    ----------
    value : int
        In ``[0, 2**64)``.

    Returns
    -------
    bytes
        One byte for every seven bits, the shortest form.

    Raises
    ------
    InputError
        If the value is negative or needs more than 64 bits.
    """
    if not 0 <= value < 1 << 64:
        raise InputError(
            f"write_varint: expected 0 <= value < 2**64, found {value}; "
            "use zigzag() for signed values"
        )
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, pos: int) -> tuple[int, int]:
    """Read an unsigned LEB128 integer, in its shortest form only.

    Parameters
    ----------
    data : bytes
        Bytes that hold the integer.
    pos : int
        Where it starts.

    Returns
    -------
    tuple[int, int]
        The value, and the position behind it.

    Raises
    ------
    WireError
        If the bytes end early, the form is not the shortest, or the value needs
        more than 64 bits.
    """
    if pos < len(data) and data[pos] < 0x80:  # most of them
        return data[pos], pos + 1
    value = 0
    for index, byte in enumerate(data[pos : pos + _MAX_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                raise WireError(
                    f"read_varint: expected the shortest form at byte {pos}, found "
                    f"{index + 1} bytes for {value}; the data are damaged"
                )
            if value >> 64:
                raise WireError(
                    f"read_varint: expected at most 64 bits at byte {pos}, found "
                    f"{value.bit_length()}; the data are damaged"
                )
            return value, pos + index + 1
    raise WireError(
        f"read_varint: expected an integer of at most {_MAX_BYTES} bytes at byte "
        f"{pos}, found no end of it in {len(data)} bytes; the data are cut or damaged"
    )


def zigzag(value: int) -> int:
    """Map 0, -1, 1, -2, 2, ... to 0, 1, 2, 3, 4, ...

    Parameters
    ----------
    value : int
        Any integer.

    Returns
    -------
    int
        The unsigned image; below ``2**64`` if ``-2**63 <= value < 2**63``.
    """
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """Invert :func:`zigzag`.

    Parameters
    ----------
    value : int
        A non-negative integer.

    Returns
    -------
    int
        The signed integer.
    """
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1

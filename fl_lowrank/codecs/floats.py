"""Numbers as they are: little-endian bytes of a tensor, no header."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, WireError

# bfloat16 is unknown to numpy and travels as the 16-bit integer with its bits.
_WIRE_DTYPES: dict[torch.dtype, np.dtype[np.generic]] = {
    torch.float16: np.dtype("<f2"),
    torch.bfloat16: np.dtype("<i2"),
    torch.float32: np.dtype("<f4"),
    torch.float64: np.dtype("<f8"),
    torch.int8: np.dtype("i1"),
    torch.int16: np.dtype("<i2"),
    torch.int32: np.dtype("<i4"),
    torch.int64: np.dtype("<i8"),
    torch.uint8: np.dtype("u1"),
    torch.bool: np.dtype("?"),
}


def encode_raw(x: Tensor) -> bytes:
    """Write the entries of a tensor as little-endian bytes, bit for bit.

    Parameters
    ----------
    x : Tensor
        Of dtype float16, bfloat16, float32, float64, int8, int16, int32, int64,
        uint8 or bool, on any device; entries are taken in row-major order.

    Returns
    -------
    bytes
        ``x.numel()`` times the item size.

    Raises
    ------
    InputError
        If the dtype is none of these.
    """
    wire_dtype = _wire_dtype("encode_raw", x.dtype)
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        x = x.view(torch.int16)
    return x.numpy().astype(wire_dtype, copy=False).tobytes()


def decode_raw(data: bytes, dtype: torch.dtype) -> Tensor:
    """Invert :func:`encode_raw`.

    Parameters
    ----------
    data : bytes
        Whole items only.
    dtype : torch.dtype
        The dtype that was encoded.

    Returns
    -------
    Tensor
        One-dimensional, on the CPU, with memory of its own.

    Raises
    ------
    WireError
        If the length is no multiple of the item size, or a bool is not 0 or 1.
    InputError
        If the dtype is not one that :func:`encode_raw` takes.
    """
    wire_dtype = _wire_dtype("decode_raw", dtype)
    if len(data) % wire_dtype.itemsize:
        raise WireError(
            f"decode_raw: expected a multiple of {wire_dtype.itemsize} bytes for "
            f"{dtype}, found {len(data)}; the data are cut or extended"
        )
    if dtype == torch.bool and data.translate(None, b"\x00\x01"):
        raise WireError(
            "decode_raw: expected bytes 0 and 1 for torch.bool, found others; "
            "the data are damaged"
        )
    stored = np.frombuffer(data, dtype=wire_dtype)
    x = torch.from_numpy(stored.astype(wire_dtype.newbyteorder("="), copy=True))
    return x.view(dtype) if dtype == torch.bfloat16 else x


def _wire_dtype(caller: str, dtype: torch.dtype) -> np.dtype[np.generic]:
    try:
        return _WIRE_DTYPES[dtype]
    except KeyError:
        names = ", ".join(str(known).removeprefix("torch.") for known in _WIRE_DTYPES)
        raise InputError(
            f"{caller}: expected a dtype out of {names}, found {dtype}; "
            "convert the tensor first"
        ) from None

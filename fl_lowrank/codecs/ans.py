"""The one door to constriction: symbols to bytes by asymmetric numeral systems.

Probabilities are fixed-point with 24 bits, so a stream of ten million equal
symbols costs next to nothing (12-bit tables: about 440 bytes). Weights are
integers held in float64 whose sum is below 2**53: every sum is exact, so both
ends build the same table on any machine.

The coder starts from a seal instead of zero and must come back to it. Decoding
strictly lowers a state of ``2**24`` or more when no word is left, so a wrong count or
missing bytes cannot end there by reading symbols that cost nothing. From zero they
could. The seal costs about as much as one symbol.

References
----------
J. Duda, "Asymmetric numeral systems", arXiv 1311.2540.
R. Bamler, "Understanding entropy coding with asymmetric numeral systems (ANS)",
arXiv 2201.01741 (constriction).
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ..errors import WireError

_SEAL = 1 << 24


def _categorical(weights: NDArray[np.float64]) -> Any:
    return constriction.stream.model.Categorical(weights, perfect=False)


def ans_encode(symbols: NDArray[np.int32], weights: NDArray[np.float64]) -> bytes:
    """Code symbols, each in about ``-log2`` of its share of the weights.

    Parameters
    ----------
    symbols : ndarray of int32
        One-dimensional, values in ``[0, len(weights))``.
    weights : ndarray of float64
        At least two positive integers.

    Returns
    -------
    bytes
        The coder's words, little-endian, without the zero bytes at the end.
    """
    coder = constriction.stream.stack.AnsCoder(np.array([_SEAL], dtype=np.uint32))
    coder.encode_reverse(symbols, _categorical(weights))
    words: NDArray[np.uint32] = coder.get_compressed()
    return words.astype("<u4", copy=False).tobytes().rstrip(b"\x00")


def ans_decode(
    data: bytes, weights: NDArray[np.float64], count: int
) -> NDArray[np.int32]:
    """Invert :func:`ans_encode`, strictly.

    Parameters
    ----------
    data : bytes
        What :func:`ans_encode` returned, all of it.
    weights : ndarray of float64
        The same weights.
    count : int
        How many symbols to read.

    Returns
    -------
    ndarray of int32
        Values in ``[0, len(weights))``.

    Raises
    ------
    WireError
        If the bytes do not hold exactly `count` symbols.
    """
    if data.endswith(b"\x00"):
        raise WireError(
            "ans_decode: expected the last byte not to be zero, found padding; "
            "the data are extended or damaged"
        )
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype="<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
        symbols: NDArray[np.int32] = coder.decode(_categorical(weights), count)
        is_back: bool = coder.pos() == (0, _SEAL)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the native library is no Exception
        raise WireError(
            f"ans_decode: expected {count} symbols in {len(data)} bytes, found data "
            f"that the coder refuses ({error}); the data are damaged"
        ) from error
    if not is_back:
        raise WireError(
            f"ans_decode: expected exactly {count} symbols in {len(data)} bytes, "
            "found another number; the data are cut, extended or damaged"
        )
    return symbols

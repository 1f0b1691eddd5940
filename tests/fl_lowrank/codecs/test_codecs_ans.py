from __future__ import annotations

import numpy as np
import pytest

from fl_lowrank.codecs import ans
from fl_lowrank.codecs.ans import ans_decode, ans_encode
from fl_lowrank.errors import WireError

WEIGHTS = np.array([5.0, 1.0, 2.0])
SYMBOLS = np.array([0, 2, 0, 1, 0, 2, 0, 0, 0, 1] * 3, dtype=np.int32)


class NativePanic(BaseException):
    """As a native library raises when it panics: not an Exception."""


def test_bytes_are_pinned() -> None:
    data = ans_encode(SYMBOLS, WEIGHTS)
    assert data.hex() == "051d9854c47454d104"
    assert ans_decode(data, WEIGHTS, 30).tolist() == SYMBOLS.tolist()


def test_ten_million_likely_symbols_cost_next_to_nothing() -> None:
    symbols = np.zeros(10_000_000, dtype=np.int32)
    assert len(ans_encode(symbols, np.array([1e7, 1.0]))) <= 5


def test_symbol_that_costs_nothing_cannot_hide_a_wrong_count() -> None:
    # From a zero state, the first symbol of the alphabet could be read forever.
    data = ans_encode(SYMBOLS, WEIGHTS)
    for count in [*range(30), *range(31, 100)]:
        with pytest.raises(WireError, match="expected exactly"):
            ans_decode(data, WEIGHTS, count)


def test_padding_is_refused() -> None:
    with pytest.raises(WireError, match="found padding"):
        ans_decode(ans_encode(SYMBOLS, WEIGHTS) + b"\x00", WEIGHTS, 30)


def test_native_panic_is_a_wire_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(_: object) -> None:
        raise NativePanic("index out of bounds")

    monkeypatch.setattr(ans, "_categorical", panic)
    with pytest.raises(WireError, match="index out of bounds"):
        ans_decode(b"\x01", WEIGHTS, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupts_pass(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(_: object) -> None:
        raise error

    monkeypatch.setattr(ans, "_categorical", interrupt)
    with pytest.raises(error):
        ans_decode(b"\x01", WEIGHTS, 1)

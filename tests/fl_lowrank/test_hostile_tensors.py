"""Layouts of tucker and tensor_train forged by hand."""

from __future__ import annotations

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import decoders, wire
from fl_lowrank.compressors.tensor_train import TRAIN
from fl_lowrank.compressors.tucker import TUCKER
from fl_lowrank.errors import WireError
from fl_lowrank.types import Coding, Field, Payload, Shape

FORGED: dict[str, tuple[Shape, list[int], list[int]]] = {
    "no layout": ((4, 6, 5), [], [1, 1]),
    "one dimension": ((120,), [120, 1], [1, 120]),
    "other entries": ((4, 6, 5), [4, 6, 6, 1, 1, 1], [1, 16]),
    "a zero dimension": ((0, 6), [0, 6, 1, 1], [1, 6]),
    "a negative dimension": ((4, 6), [-4, -6, 1, 1], [1, 10]),
    "a rank of zero": ((4, 6, 5), [4, 6, 5, 0, 1, 1], [0, 11]),
    "a rank too large": ((4, 6, 5), [4, 6, 5, 7, 1, 1], [7, 39]),
    "a huge rank": ((4, 6, 5), [4, 6, 5, 2**62, 1, 1], [1, 15]),
    "huge dimensions": ((4, 6, 5), [2**40, 2**40, 2**40, 1, 1, 1], [1, 15]),
    "too few numbers": ((4, 6, 5), [4, 6, 5, 1, 1, 1], [1, 14]),
    "too many numbers": ((4, 6, 5), [4, 6, 5, 1, 1, 1], [1, 16]),
    "no fewer than the tensor": ((2, 2, 2), [2, 2, 2, 1, 2, 1], [2, 4]),
    "a wrong parity": ((4, 6, 5), [4, 6, 5, 1, 1, 1, 1], [1, 15]),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_tucker_messages(what: str) -> None:
    shape, layout, (core, bases) = FORGED[what]
    fields = {
        "layout": Field(Coding.VARINTS, torch.tensor(layout, dtype=torch.int64)),
        "core": Field(Coding.RAW, torch.ones(core)),
        "bases": Field(Coding.RAW, torch.ones(bases)),
    }
    payload = Payload(TUCKER, shape, torch.float32, fields)
    if what != "no fewer than the tensor":
        with pytest.raises(WireError, match="tucker"):
            decoders.decode(decoders.unpack(wire.pack(payload)))
    else:  # six of eight: a message that a sender may well choose
        assert fll.decode(payload).shape == shape


@pytest.mark.parametrize(
    ("layout", "count"),
    [
        ([], 1),
        ([120], 119),
        ([4, 30], 34),
        ([4, 6, 5, 1], 15),
        ([4, 6, 5, 1, 1], 14),
        ([4, 6, 5, 1, 1, 1], 15),
        ([4, 6, 5, 0, 1], 5),
        ([4, 6, 5, 1, 6], 4 + 36 + 30),
        ([4, 6, 5, 3, 5], 12 + 90 + 25),
        ([4, 6, 5, 2**62, 2**62], 3),
        ([2**40, 2**40, 2**40, 1, 1], 15),
        ([1, 120, 2], 120),
        ([120, 1, 2], 120),
        ([-4, -6, 5, 1, 1], 15),
    ],
)
def test_forged_trains(layout: list[int], count: int) -> None:
    fields = {
        "layout": Field(Coding.VARINTS, torch.tensor(layout, dtype=torch.int64)),
        "cores": Field(Coding.RAW, torch.ones(count)),
    }
    payload = Payload(TRAIN, (4, 6, 5), torch.float32, fields)
    with pytest.raises(WireError, match="train"):
        decoders.decode(decoders.unpack(wire.pack(payload)))


def test_numbers_beyond_the_dtype_are_refused_or_finite() -> None:
    """Columns of float64 near its end, into float32."""
    for values in ([1e308] * 15, [1e308, -1e308] * 7 + [1e308], [0.0] * 15):
        fields = {
            "layout": Field(Coding.VARINTS, torch.tensor([4, 6, 5, 1, 1])),
            "cores": Field(Coding.RAW, torch.tensor(values, dtype=torch.float64)),
        }
        payload = Payload(TRAIN, (4, 6, 5), torch.float32, fields)
        try:
            y = fll.decode(payload)
        except WireError:
            continue
        assert bool(torch.isfinite(y).all())

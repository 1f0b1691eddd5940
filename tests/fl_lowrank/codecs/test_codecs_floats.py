from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from fl_lowrank.codecs.floats import decode_raw, encode_raw
from fl_lowrank.errors import InputError, WireError

ITEM_SIZES = {
    torch.float16: 2,
    torch.bfloat16: 2,
    torch.float32: 4,
    torch.float64: 8,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 4,
    torch.int64: 8,
    torch.uint8: 1,
    torch.bool: 1,
}
DTYPES = list(ITEM_SIZES)


def random_tensor(dtype: torch.dtype, size: int) -> torch.Tensor:
    """Any bit patterns: NaN, infinities and subnormal numbers too."""
    if dtype == torch.bool:
        return torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.5
    raw = bytearray(np.random.default_rng(0).bytes(size * ITEM_SIZES[dtype]))
    return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


@pytest.mark.parametrize("size", [0, 1, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_bit(dtype: torch.dtype, size: int) -> None:
    x = random_tensor(dtype, size)
    data = encode_raw(x)
    assert len(data) == size * ITEM_SIZES[dtype]
    y = decode_raw(data, dtype)
    assert y.dtype == dtype
    assert y.shape == (size,)
    # As bytes, since NaN differs from itself.
    assert bytes(y.untyped_storage()) == bytes(x.untyped_storage())


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_tensor_has_memory_of_its_own(dtype: torch.dtype) -> None:
    data = encode_raw(torch.ones(3, dtype=dtype))
    y = decode_raw(data, dtype)
    y.zero_()
    assert decode_raw(data, dtype).to(torch.float64).tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("x", "coded"),
    [
        (torch.tensor([1.0, -2.0], dtype=torch.float16), "003c00c0"),
        (torch.tensor([1.0, -2.0], dtype=torch.bfloat16), "803f00c0"),
        (torch.tensor([1.0]), "0000803f"),
        (torch.tensor([1.0], dtype=torch.float64), "000000000000f03f"),
        (torch.tensor([258, -1], dtype=torch.int32), "02010000ffffffff"),
        (torch.tensor([True, False]), "0100"),
    ],
)
def test_bytes_are_pinned(x: torch.Tensor, coded: str) -> None:
    assert encode_raw(x).hex() == coded


def test_strided_input_with_gradient() -> None:
    x = torch.arange(6.0).reshape(2, 3).requires_grad_().T
    assert decode_raw(encode_raw(x), torch.float32).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("dtype", [d for d in DTYPES if ITEM_SIZES[d] > 1])
def test_broken_items_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WireError, match="multiple of"):
        decode_raw(bytes(ITEM_SIZES[dtype] + 1), dtype)


def test_bool_beyond_one_is_refused() -> None:
    with pytest.raises(WireError, match="bytes 0 and 1"):
        decode_raw(b"\x00\x02", torch.bool)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(InputError, match="complex64"):
        encode_raw(torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(InputError, match="complex64"):
        decode_raw(bytes(8), torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mutations_give_a_tensor_or_an_error(
    dtype: torch.dtype, mutations: Callable[..., Iterable[bytes]]
) -> None:
    rng = np.random.default_rng(2)
    num_tensors = 0
    for data in mutations(encode_raw(random_tensor(dtype, 20)), rng):
        try:
            y = decode_raw(data, dtype)
        except WireError:
            continue
        assert len(y) * ITEM_SIZES[dtype] == len(data)
        num_tensors += 1
    assert num_tensors > 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_from_a_cuda_device(dtype: torch.dtype) -> None:
    x = random_tensor(dtype, 10)
    assert encode_raw(x.cuda()) == encode_raw(x)

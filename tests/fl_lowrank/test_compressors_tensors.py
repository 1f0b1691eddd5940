"""tucker and tensor_train: bounds, exactness, views."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import Contractive, Exact, Svd, TensorTrain, Tucker
from fl_lowrank.compressors.tensors import TensorFormat
from fl_lowrank.compressors.tucker import TUCKER
from fl_lowrank.errors import SettingError
from fl_lowrank.linalg import orthonormal
from fl_lowrank.shapes import tensor_shape
from fl_lowrank.types import Coding, Field, Payload, Shape
from tests.fl_lowrank.compressing import error, send

FORMATS: list[type[TensorFormat]] = [Tucker, TensorTrain]
SHAPES: list[Shape] = [(16, 8, 3, 3), (40, 24), (24, 40), (960,), (7, 11, 13)]


def normal(shape: Shape, key: int = 60) -> Tensor:
    return fll.rng.stream(key).normal(*shape).to(torch.float64)


def smooth(shape: Shape) -> Tensor:
    """All ranks decay: a Cauchy kernel over the view's coordinates, with noise."""
    dims = tensor_shape(shape, 3)
    grids = torch.meshgrid(*(torch.linspace(0, 1, n) for n in dims), indexing="ij")
    x = 1.0 / (0.1 + torch.stack(grids).sum(0))
    return (x + 1e-3 * normal(dims)).reshape(shape).to(torch.float64)


def numbers(payload: Payload) -> int:
    return sum(payload.tensor(name).numel() for name in payload.kind.inner)


def encoded(c: TensorFormat, x: Tensor) -> Payload:
    return c.encode(x, {}, fll.rng.stream(0))[0]


@pytest.mark.parametrize(
    ("shape", "order", "view"),
    [
        ((1024, 768), 2, (1024, 768)),
        ((1024, 768), 3, (32, 32, 768)),
        ((1024, 768), 4, (32, 32, 24, 32)),
        ((768,), 2, (24, 32)),
        ((64, 32, 3, 3), 3, (64, 32, 3, 3)),
        ((64, 32, 1, 1), 3, (8, 8, 32)),
        ((64, 64), 3, (64, 8, 8)),
        ((10, 101), 3, (2, 5, 101)),
        ((101,), 3, (101,)),
        ((7, 11), 10**30, (7, 11)),
        ((8,), 10**30, (2, 2, 2)),
        ((), 3, ()),
        ((1, 1), 3, ()),
        ((0, 6), 3, (0, 2, 3)),
    ],
)
def test_views(shape: Shape, order: int, view: Shape) -> None:
    assert tensor_shape(shape, order) == view


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy_is_kept_by_every_message(
    cls: type[TensorFormat], shape: Shape, order: int
) -> None:
    inputs = {
        "normal": normal(shape),
        "smooth": smooth(shape),
        "one hot": torch.zeros(math.prod(shape)).index_fill(0, torch.tensor(5), 1.0),
        "heavy": normal(shape) ** 5,
    }
    for name, flat in inputs.items():
        x = flat.reshape(shape).to(torch.float64)
        sizes = []
        for accuracy in (0.9, 0.3, 0.01):
            c = cls(accuracy=accuracy, order=order)
            assert c.guarantee(shape) == Contractive(1 - accuracy**2)
            assert error(x, send(c, x)) <= accuracy**2 * (1 + 1e-9), name
            sizes.append(numbers(encoded(c, x)))
        assert sizes == sorted(sizes), name
        assert sizes[-1] <= x.numel()


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_smooth_tensors_take_few_numbers(cls: type[TensorFormat], shape: Shape) -> None:
    x = smooth(shape)
    assert numbers(encoded(cls(accuracy=0.05), x)) < 0.5 * x.numel()


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ranks_keep_the_stated_share(
    cls: type[TensorFormat], shape: Shape, rank: int
) -> None:
    c = cls(rank=rank)
    stated = c.guarantee(shape)
    assert isinstance(stated, Contractive)
    for x in (normal(shape), smooth(shape), normal(shape, 61).sign()):
        payload = encoded(c, x)
        sizes = tuple(payload.tensor(name).numel() for name in payload.kind.inner)
        assert sizes == tuple(n for (n,) in c.inner_shapes(shape))
        assert error(x, send(c, x)) <= 1 - stated.delta


def test_the_share_of_a_train_is_attained() -> None:
    """Of order 2 by a flat spectrum; of order 3 by a tensor flat in both steps."""
    x = orthonormal(normal((16, 12)))
    assert error(x, send(TensorTrain(rank=3, order=2), x)) == pytest.approx(1 - 3 / 12)
    # The unfoldings 2 x 8 and, of what is left by one row, 2 x 4 are both flat.
    x = torch.zeros(2, 2, 4, dtype=torch.float64)
    for i, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        x[a, b, i] = 1.0
    c = TensorTrain(rank=1)
    assert c.guarantee((2, 2, 4)) == Contractive(1 / 4)
    assert error(x, send(c, x)) == pytest.approx(3 / 4)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_train_of_order_two_is_the_truncated_svd(shape: Shape) -> None:
    x = normal(shape)
    for rank in (1, 4, 9):
        y, z = send(TensorTrain(rank=rank, order=2), x), send(Svd(rank), x)
        assert torch.allclose(y, z, atol=1e-9)


@pytest.mark.parametrize("cls", FORMATS)
def test_tensors_of_the_rank_are_sent_exactly(cls: type[TensorFormat]) -> None:
    core = normal((2, 3, 2))
    bases = (orthonormal(normal((n, r), n)) for n, r in ((12, 2), (10, 3), (8, 2)))
    x = torch.einsum("abc,ia,jb,kc->ijk", core, *bases)
    y = send(cls(rank=6), x)
    assert torch.allclose(x, y, atol=1e-9)
    assert numbers(encoded(cls(accuracy=1e-6), x)) <= 12 + 24 + 30 + 16 + 60


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (24, 40)])
def test_the_error_is_near_the_best(cls: type[TensorFormat], shape: Shape) -> None:
    """At most N, or N - 1, times the best; no rank leaves less than its unfolding."""
    x = smooth(shape)
    rank = 2
    y = send(cls(rank=rank), x)
    dims = tensor_shape(shape, 3)
    view, tails = x.reshape(dims), []
    for k in range(len(dims)):
        rows = (
            view.movedim(k, 0).reshape(dims[k], -1)
            if cls is Tucker
            else view.reshape(math.prod(dims[: k + 1]), -1)
        )
        squares = torch.linalg.svdvals(rows).square()
        tails.append(float(squares[rank:].sum() / squares.sum()))
    assert max(tails) - 1e-12 <= error(x, y) <= sum(tails) + 1e-12


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (101,), (1, 7), (2, 2)])
def test_where_factors_do_not_pay_the_tensor_is_sent(
    cls: type[TensorFormat], shape: Shape
) -> None:
    x = normal(shape)
    for c in (cls(rank=2), cls(accuracy=0.5)):
        assert c.guarantee(shape) == Exact()
        assert torch.equal(send(c, x), x)
    full = normal((5, 6, 7))
    assert torch.equal(send(cls(accuracy=1e-6), full), full)


@pytest.mark.parametrize("cls", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "magnitude", "slack"),
    [
        (torch.float16, 3e-6, 0.1),
        (torch.float16, 60000.0, 1e-2),
        (torch.bfloat16, 1e30, 5e-2),
        (torch.float32, 1e-40, 1e-3),
        (torch.float32, 1e30, 1e-5),
        (torch.float64, 1e-300, 1e-9),
        (torch.float64, 1e300, 1e-9),
    ],
)
def test_magnitudes(
    cls: type[TensorFormat], dtype: torch.dtype, magnitude: float, slack: float
) -> None:
    x = smooth((16, 8, 3, 3))
    plain = error(x, send(cls(rank=2), x))
    scaled = (x / x.abs().max() * magnitude).to(dtype)
    assert error(scaled, send(cls(rank=2), scaled)) <= plain + slack


@pytest.mark.parametrize("cls", FORMATS)
def test_coded_parts_decode_to_near_the_tensor(cls: type[TensorFormat]) -> None:
    x = smooth((32, 16, 3, 3))
    plain = error(x, send(cls(rank=3), x))
    coded = fll.parse(f"{cls(rank=3)} >> sparse_dithering(nu=0.001)")
    assert plain < error(x, send(coded, x)) < plain + 0.01


def test_bases_of_any_length_decode_alike() -> None:
    """The decoder normalises them: their lengths are the sender's choice."""
    x = normal((12, 10, 8))
    payload = encoded(Tucker(rank=3), x)
    fields = dict(payload.fields)
    fields["bases"] = Field(Coding.RAW, 1e-3 * payload.tensor("bases"))
    scaled = Payload(TUCKER, payload.shape, payload.dtype, fields)
    assert torch.allclose(fll.decode(payload), fll.decode(scaled), atol=1e-12)


@pytest.mark.parametrize("cls", FORMATS)
def test_impossible_settings(cls: type[TensorFormat]) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({}, "either rank or accuracy"),
        ({"rank": 2, "accuracy": 0.5}, "either rank or accuracy"),
        ({"rank": 0}, "a rank of at least 1, found 0"),
        ({"accuracy": 1.0}, r"an accuracy in \[1e-06, 1\), found 1.0"),
        ({"accuracy": 1e-7}, "an accuracy in"),
        ({"rank": 2, "order": 1}, "an order of at least 2, found 1"),
    ]
    for settings, what in faults:
        with pytest.raises(SettingError, match=f"{cls.name}: expected {what}"):
            cls(**settings)

"""What the golden files hold: small tensors, their messages, what these decode to.

A file is JSON: ``text`` of the compressor, ``seed`` of its draws, ``shape``,
``dtype``, ``input`` and ``decoded`` (little-endian, base64), ``message`` (base64).
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.codecs.floats import decode_raw, encode_raw
from fl_lowrank.types import Shape

FOLDER = Path(__file__).parent
#: Files of what the encoder wrote once; that must be decoded for ever, too.
SUPERSEDED = FOLDER / "superseded"
COMMAND = "python -m tests.golden"


@dataclass(frozen=True)
class Case:
    """One golden file: what is compressed, and how."""

    name: str
    text: str
    shape: Shape = (600,)
    dtype: torch.dtype = torch.float32

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"


CASES = (
    Case("identity", "identity()", (3, 4)),
    Case("identity_integers", "identity()", (9,), torch.int64),
    Case("identity_scalar", "identity()", (), torch.float64),
    Case("identity_empty", "identity()", (0, 3), torch.float16),
    Case("f16", "f16()", (5, 7)),
    Case("topk", "topk(fraction=0.02)"),
    Case("topk_dense", "topk(fraction=0.6)", (40, 4), torch.bfloat16),
    Case("randk", "randk(k=9)"),
    Case("natural", "natural()"),
    Case("natural_float64", "natural()", (17,), torch.float64),
    Case("natural_stochastic", "natural_stochastic()", (20, 30), torch.bfloat16),
    Case("svd", "svd(rank=2)", (12, 10)),
    Case("svd_vector", "svd(rank=2)", (13,)),
    Case("rsvd", "rsvd(rank=2)", (10, 2, 3, 3)),
    Case("powersgd", "powersgd(rank=1)", (12, 10), torch.float64),
    Case("sparse_dithering", "sparse_dithering(nu=0.1)"),
    Case("sparse_dithering_coarse", "sparse_dithering(nu=0.9)", (11,), torch.float16),
    Case("sparse_dithering_unbiased", "sparse_dithering_unbiased(omega=0.25)"),
    Case("sketch", "sketch(fraction=0.02, capacity=0.1)"),
    Case("sketch_small", "sketch(k=9, bits=10, seed=5)", (5, 8), torch.float16),
    Case("uniform", "uniform(bits=4, block=100)", (7, 50)),
    Case("uniform_wide", "uniform(bits=11)", (90,), torch.float64),
    Case("uniform_one_bit", "uniform(bits=1, block=64)", (200,), torch.bfloat16),
    Case("uniform_stochastic", "uniform_stochastic(bits=3, block=128)"),
    Case("qsgd", "qsgd(levels=12)"),
    Case("qsgd_blocks", "qsgd(levels=7, block=150)", (25, 16), torch.float16),
    Case("terngrad", "terngrad()", (300,)),
    Case("terngrad_blocks", "terngrad(block=64)", (300,), torch.float64),
    Case("natural_dithering", "natural_dithering(levels=5)", (400,)),
    Case("sign", "sign()", (301,)),
    Case("sign_blocks", "sign(block=50)", (120,), torch.float16),
    Case("md_stochastic", "md_stochastic(fraction=0.05)"),
    Case("md_stochastic_paper", 'md_stochastic(k=12, scale="paper")'),
    Case("md_greedy", "md_greedy(fraction=0.02)"),
    Case("md_greedy_weighted", 'md_greedy_weighted(k=9, scale="paper")', (30, 8)),
    Case("md_weighted_greedy", "md_weighted_greedy(k=9)", (70,), torch.bfloat16),
    Case("md_weighted_greedy_natural", "md_weighted_greedy(k=40) >> natural()"),
    Case("spherical", "spherical()", (9, 8)),
    Case("spherical_float64", "spherical(alpha=0.2, block=5)", (27,), torch.float64),
    Case("spherical_unbiased", "spherical_unbiased(alpha=0.3)", (50,)),
    Case("eden", "eden(bits=1.0)"),
    Case("eden_half", "eden(bits=0.5)", (130,), torch.float16),
    Case("eden_mixed", "eden(bits=1.5)", (75,)),
    Case("eden_contractive", "eden_contractive(bits=2.0)"),
    Case("eden_contractive_fine", "eden_contractive(bits=3.3)", (9, 23), torch.float64),
    Case("rotated", "rotated(inner=natural())", (150,)),
    Case("ecsq_step", "ecsq(step=0.7)"),
    Case("ecsq_nmse", "ecsq(nmse=0.05)", (30, 4)),
    Case("dither", "dither(nmse=0.1)"),
    Case("dither_folded", "dither(step=2.0)", (900,), torch.float16),
    Case("dither_pairs", "dither(step=100.0)", (4097,), torch.float16),
    Case("dither_unbiased", "dither_unbiased(step=1.0)", (25, 3), torch.bfloat16),
    Case("shrunk", "shrunk(inner=randk(fraction=0.05))"),
    Case("by_size", "by_size(threshold=9, small=f16(), large=topk(k=3))", (2, 8)),
    Case("topk_natural", "topk(fraction=0.05) >> natural()"),
    Case("topk_natural_stochastic", "topk(fraction=0.05) >> natural_stochastic()"),
    Case("topk_f16", "topk(k=11) >> f16()"),
    Case("powersgd_sparse_dithering", "powersgd(rank=2) >> sparse_dithering()", (9, 8)),
    Case("svd_energy", "svd(energy=0.6)", (12, 10)),
    Case("lowrank_unbiased", "lowrank_unbiased(rank=3)", (20, 12)),
    Case("lowrank_unbiased_tall", "lowrank_unbiased(rank=1)", (9, 2), torch.float16),
    Case("atomo", "atomo(rank=2)", (12, 10)),
    Case("tucker", "tucker(rank=2)", (6, 5, 2, 2)),
    Case("tucker_matrix", "tucker(accuracy=0.7)", (12, 10), torch.float64),
    Case("tensor_train", "tensor_train(rank=2)", (6, 5, 2, 2)),
    Case("tensor_train_vector", "tensor_train(accuracy=0.7, order=4)", (144,)),
    Case("tensor_train_coded", "tensor_train(rank=2) >> natural()", (15, 16)),
    Case("threshold", "threshold(relative=1.5)", (30, 20)),
    Case("threshold_value", "threshold(value=2.5) >> natural()", (50,), torch.float64),
    Case("induced", "induced(biased=topk(k=9) >> natural(), unbiased=randk(k=30))"),
    Case("flat", "flat(inner=topk(k=5) >> natural())", (10, 2, 3, 3)),
    Case("flat_vector", "flat(inner=svd(rank=1))", (60,), torch.float16),
    Case("budget", "budget(bytes=200)", (20, 30)),
    Case("budget_topk", 'budget(bytes=60, method="topk")'),
    Case("shrunk_chain", "shrunk(inner=randk(k=30) >> natural_stochastic())"),
)


def make_input(case: Case) -> Tensor:
    """Bell-shaped multiples of 1/64, the same on every machine."""
    count = math.prod(case.shape)
    bits = fll.rng.stream(0, case.name).bits32(4 * count).reshape(4, count)
    x = ((bits >> 16).sum(0) >> 9).to(torch.float64) / 64.0
    return x.to(case.dtype).reshape(case.shape)


def encode(text: str, x: Tensor) -> bytes:
    compressor = fll.parse(text)
    payload, _ = compressor.encode(
        x, compressor.init(tuple(x.shape)), fll.rng.stream(0, "golden")
    )
    return fll.pack(payload)


def write(case: Case) -> None:
    x = make_input(case)
    message = encode(case.text, x)
    content = {
        "text": case.text,
        "shape": list(case.shape),
        "dtype": str(case.dtype).removeprefix("torch."),
        "input": _base64(encode_raw(x)),
        "message": _base64(message),
        "decoded": _base64(encode_raw(fll.decode(fll.unpack(message)))),
    }
    case.path.write_text(json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Golden:
    """A golden file, read."""

    text: str
    x: Tensor
    message: bytes
    decoded: Tensor


def read(path: Path) -> Golden:
    content: dict[str, Any] = json.loads(path.read_text())
    dtype = getattr(torch, content["dtype"])

    def tensor(key: str) -> Tensor:
        return decode_raw(base64.b64decode(content[key]), dtype).reshape(
            content["shape"]
        )

    return Golden(
        content["text"],
        tensor("input"),
        base64.b64decode(content["message"]),
        tensor("decoded"),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

"""The contract suite over every instance, on every device that is present."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank import checks
from fl_lowrank.types import Compressor
from tests.instances import INSTANCES

ALL_LAWS = (*checks.LAWS, *checks.STATISTICAL_LAWS)


@pytest.mark.parametrize("law", ALL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("compressor", INSTANCES, ids=str)
def test_law(compressor: Compressor, law: checks.Law) -> None:
    failures = checks.check_law(law, compressor)
    assert not failures, "\n".join(failures)


@pytest.mark.gpu
@pytest.mark.parametrize("compressor", INSTANCES, ids=str)
def test_contract_on_cuda(compressor: Compressor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    checks.check_all(compressor, device="cuda")


def test_a_law_is_tried_on_every_shape_and_dtype() -> None:
    tried = set(checks.grid(checks.check_decodes_from_bytes_alone))
    assert tried == {(s, d) for s in checks.SHAPES for d in checks.DTYPES}
    for law in ALL_LAWS:
        assert {d for _, d in checks.grid(law)} == set(checks.DTYPES)


def test_another_process_decodes_every_message(tmp_path: Path) -> None:
    """It has never encoded anything, so nothing but the bytes can help it."""
    expected = []
    for i, compressor in enumerate(INSTANCES):
        x = fll.rng.stream(i).normal(24, 40)
        payload, _ = compressor.encode(x, compressor.init(x.shape), fll.rng.stream(i))
        (tmp_path / f"{i}.bin").write_bytes(fll.pack(payload))
        expected.append(fll.decode(payload))
    program = (
        "import sys, torch, fl_lowrank as fll; from pathlib import Path\n"
        "at = Path(sys.argv[1])\n"
        "found = [fll.decode(fll.unpack((at / f'{i}.bin').read_bytes()))"
        " for i in range(int(sys.argv[2]))]\n"
        "torch.save(found, at / 'found.pt')"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(len(INSTANCES))],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = torch.load(tmp_path / "found.pt")
    for compressor, y, z in zip(INSTANCES, expected, found, strict=True):
        assert torch.allclose(y, z, rtol=1e-5, atol=1e-6), str(compressor)

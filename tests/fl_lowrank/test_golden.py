"""Messages of past releases are decoded for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fl_lowrank as fll
from fl_lowrank.compressors.eden_payload import EDEN
from fl_lowrank.compressors.lowrank import LOWRANK
from fl_lowrank.compressors.projected import PROJECTED
from fl_lowrank.compressors.rotated import ROTATED
from fl_lowrank.compressors.tensor_train import TRAIN
from fl_lowrank.compressors.tucker import TUCKER
from fl_lowrank.types import Payload
from tests.golden.cases import FOLDER, SUPERSEDED, encode, read

#: Kinds with a matrix product, or a Fourier transform, that may round otherwise.
PRODUCTS = {kind.name for kind in (LOWRANK, PROJECTED, TUCKER, TRAIN, EDEN, ROTATED)}
FILES = sorted(FOLDER.glob("*.json"))
OLD_FILES = sorted(SUPERSEDED.glob("*.json"))


def kinds(payload: Payload) -> set[str]:
    inner = [f.value for f in payload.fields.values() if isinstance(f.value, Payload)]
    return {payload.kind.name}.union(*(kinds(p) for p in inner))


@pytest.mark.parametrize("path", FILES + OLD_FILES, ids=lambda path: path.stem)
def test_old_bytes_stay_readable(path: Path) -> None:
    golden = read(path)
    payload = fll.unpack(golden.message)
    y = fll.decode(payload)
    assert (y.shape, y.dtype) == (golden.decoded.shape, golden.decoded.dtype)
    if PRODUCTS & kinds(payload):
        assert torch.allclose(y, golden.decoded, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(y, golden.decoded)


REPEATABLE = [
    path for path in FILES if not PRODUCTS & kinds(fll.unpack(read(path).message))
]


@pytest.mark.parametrize("path", REPEATABLE, ids=lambda path: path.stem)
def test_the_encoder_still_writes_these_bytes(path: Path) -> None:
    golden = read(path)
    assert encode(golden.text, golden.x) == golden.message, (
        f"{path.name}: the encoder writes other bytes than a release before. If that "
        "is intended and the old bytes still decode, move the file to "
        "tests/golden/superseded and run python -m tests.golden; if they do not, "
        "raise wire.VERSION too"
    )


def test_there_are_files() -> None:
    assert len(FILES) >= 25
    assert len(REPEATABLE) >= 20
    assert OLD_FILES

"""What both ends must agree on about a model: which arrays are compressed, and how.

Integer arrays and the running statistics of normalisation layers travel exactly and
without memory (lossy coding can make a variance negative); the rest is compressed as
an update in weighted units, ``num_examples * update / scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import SettingError
from .linalg import working_dtype
from .wire import TensorLayout

#: Arrays that are statistics rather than parameters, by the names torch gives them.
BUFFERS = ("*running_mean", "*running_var", "*num_batches_tracked")
#: A larger number of examples is a mistake, and would drown all other updates.
MAX_NUM_EXAMPLES = 1e12

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def is_exact(name: str, dtype: torch.dtype, patterns: Iterable[str] = ()) -> bool:
    """Whether an array travels exactly."""
    if not dtype.is_floating_point:
        return True
    return any(fnmatchcase(name, p) for p in (*BUFFERS, *patterns))


def patterns_of(who: str, exact: Sequence[str]) -> tuple[str, ...]:
    """Give the patterns of arrays that a user wants to travel exactly.

    Raises
    ------
    SettingError
        If it is one text: its letters would be the patterns, and ``*`` is one.
    """
    if isinstance(exact, str):
        msg = f"{who}: expected a list of patterns, found {exact!r}; write [{exact!r}]"
        raise SettingError(msg)
    return tuple(exact)


def split_layout(
    model: Mapping[str, TensorLayout], patterns: Iterable[str] = ()
) -> tuple[dict[str, TensorLayout], dict[str, TensorLayout]]:
    """Give the layouts of the compressed update and of the exact arrays.

    Updates of float16 arrays are computed and sent in float32.
    """
    patterns = tuple(patterns)
    lossy, exact = {}, {}
    for name, tensor in model.items():
        if is_exact(name, tensor.dtype, patterns):
            exact[name] = tensor
        else:
            lossy[name] = TensorLayout(tensor.shape, working_dtype(tensor.dtype))
    return lossy, exact


def weighted_update(
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    lossy: Mapping[str, TensorLayout],
    factor: float,
) -> dict[str, Tensor]:
    """Give ``factor * (after - before)`` for the compressed arrays."""
    update = {}
    for name, t in lossy.items():
        pair = after[name], before[name]
        difference = np.subtract(*pair, order="C", dtype=_NUMPY[t.dtype])
        update[name] = torch.from_numpy(np.asarray(difference)).mul_(factor)
    return update

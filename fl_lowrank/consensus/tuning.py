"""The step size of compressed consensus, found on random vectors before training.

The step for which convergence is proven is some hundred times too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..grouping import Layout
from ..mixing import Mixing
from ..model import ModelCodec
from ..rng import Rng
from .choco import Choco

GAMMAS = (0.1, 0.2, 0.4, 0.8)
_STEPS = 60
#: Parts of the distance at the start. Below the second, float32 would round.
_UNSTABLE, _AGREED = 1e3, 1e-4


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes
    ----------
    gamma : float
        The step size of the fastest consensus.
    rates : dict of float to float
        For each step size that was tried the factor of one step on the distance to
        consensus; at least 1, or infinite, if it is unstable.
    """

    gamma: float
    rates: dict[float, float]


def tune_gamma(
    mixing: Mixing,
    codec: ModelCodec,
    layout: Layout,
    rng: Rng,
    *,
    gammas: Sequence[float] = GAMMAS,
    steps: int = _STEPS,
    device: torch.device | str = "cpu",
) -> Tuning:
    """Run consensus alone on normal vectors and take the fastest step size.

    The distance is that of the vectors to their mean and of the public copies to the
    vectors, squared and added. Its factor is measured over the second half of the
    steps, since copies that start from zero first have to follow. They end early where
    nothing but rounding would be left of the distance.

    Parameters
    ----------
    mixing : Mixing
        The graph and its weights.
    codec : ModelCodec
        See `contractive`.
    layout : Layout
        Of the model: compressors depend on shapes.
    rng : Rng
        Of vectors and compressors.
    gammas : sequence of float
        What to try.
    steps : int
        For each, at most; n encodings are one step.
    device : torch.device or str
        Where to compute.

    Returns
    -------
    Tuning

    Raises
    ------
    SettingError
        If none is stable.
    """
    if not mixing.topology.edges:  # nobody to agree with
        return Tuning(max(gammas), {})
    rates = {
        gamma: _rate(Choco(mixing, codec, layout, gamma), rng, steps, device)
        for gamma in gammas
    }
    best = min(rates, key=lambda gamma: rates[gamma])
    if not rates[best] < 1.0:
        msg = (
            f"CHOCO: no step size of {list(gammas)} is stable with {codec}, the "
            f"distance grows by {rates[best]:.3g} a step; give a smaller gamma, or a "
            "compressor that keeps more"
        )
        raise SettingError(msg)
    return Tuning(best, rates)


def _rate(choco: Choco, rng: Rng, steps: int, device: torch.device | str) -> float:
    n = choco.mixing.topology.num_nodes
    d = sum(t.numel for t in choco.layout.values())
    x = rng.child("vectors").normal(n, d, device=device)
    mean = x.mean(dim=0)
    state = choco.init(torch.zeros_like(x))
    distances = [_distance(x, mean, state.public)]
    for step in range(steps):
        x, state, _ = choco.step(x, state, rng.child("step", step))
        distances.append(_distance(x, mean, state.public))
        if not distances[-1] < _UNSTABLE * distances[0]:
            return math.inf
        if distances[-1] < _AGREED * distances[0]:
            break
    last = len(distances) - 1
    half = last // 2
    return float((distances[last] / distances[half]) ** (1.0 / (last - half)))


def _distance(x: Tensor, mean: Tensor, public: Tensor) -> float:
    return math.sqrt(float((x - mean).square().sum() + (x - public).square().sum()))

"""The table of models, and the builder."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from ..errors import SimulationError, choose
from .residual import Residual
from .sequential import Convolution, Sequential


class Architecture(Protocol):
    """What to build."""

    @property
    def needs_images(self) -> bool:
        """Whether samples must have the shape (channels, height, width)."""
        ...

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the model, with weights from torch's global generator."""
        ...


_DIGITS_CONVOLUTIONS = (Convolution(16, 3), Convolution(32, 3, pool=True))

MODELS: dict[str, Architecture] = {
    "logistic": Sequential(),
    "mlp": Sequential((), (128,)),
    "digits-cnn": Sequential(_DIGITS_CONVOLUTIONS, (96,)),
    "digits-cnn-bn": Sequential(_DIGITS_CONVOLUTIONS, (96,), batch_norm=True),
    "cnn": Sequential(
        (Convolution(32, 5, pool=True), Convolution(64, 5, pool=True)), (452,)
    ),
    "resnet20": Residual(widths=(16, 32, 64), blocks=3, projections=False),
    "resnet18": Residual(widths=(64, 128, 256, 512), blocks=2, projections=True),
}


def build_model(
    name: str, input_shape: tuple[int, ...], num_classes: int, seed: int
) -> nn.Module:
    """Build a model of the table with weights that depend on the seed alone.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    input_shape : tuple[int, ...]
        Of one sample: (channels, height, width), or (features,) for `logistic`.
    num_classes : int
        Number of outputs.
    seed : int
        Of the initial weights.

    Returns
    -------
    nn.Module
        The model, on the CPU.
    """
    architecture = choose(MODELS, name, "model")
    if architecture.needs_images and len(input_shape) != 3:
        raise SimulationError(
            f"model {name!r} expects images (channels, height, width), found samples "
            f"of shape {tuple(input_shape)}: choose model 'logistic'."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.build(input_shape, num_classes)

"""Models: one builder, and a table of what it builds.

The convolutional network of 1,474,550 parameters is the one of federated-averaging
papers on 28 x 28 images with a hidden layer of 452 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .errors import SimulationError, choose


@dataclass(frozen=True)
class Convolution:
    """A convolution that keeps height and width, ReLU, and perhaps 2 x 2 pooling."""

    channels: int
    kernel: int  # odd, so that padding keeps the size
    pool: bool = False


@dataclass(frozen=True)
class Architecture:
    """What to build: convolutions, then hidden layers, then the output layer."""

    convolutions: tuple[Convolution, ...] = ()
    hidden: tuple[int, ...] = ()
    batch_norm: bool = False


_DIGITS_CONVOLUTIONS = (Convolution(16, 3), Convolution(32, 3, pool=True))

MODELS = {
    "logistic": Architecture(),
    "digits-cnn": Architecture(_DIGITS_CONVOLUTIONS, (96,)),
    "digits-cnn-bn": Architecture(_DIGITS_CONVOLUTIONS, (96,), batch_norm=True),
    "cnn": Architecture(
        (Convolution(32, 5, pool=True), Convolution(64, 5, pool=True)), (452,)
    ),
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
    if architecture.convolutions and len(input_shape) != 3:
        raise SimulationError(
            f"model {name!r} expects images (channels, height, width), found samples "
            f"of shape {tuple(input_shape)}: choose model 'logistic'."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(*_layers(architecture, input_shape, num_classes))


def _layers(
    architecture: Architecture, input_shape: tuple[int, ...], num_classes: int
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    shape = tuple(input_shape)
    for convolution in architecture.convolutions:
        channels, height, width = shape
        layers.append(
            nn.Conv2d(
                channels,
                convolution.channels,
                convolution.kernel,
                padding=convolution.kernel // 2,
            )
        )
        if architecture.batch_norm:
            layers.append(nn.BatchNorm2d(convolution.channels))
        layers.append(nn.ReLU())
        shape = (convolution.channels, height, width)
        if convolution.pool:
            layers.append(nn.MaxPool2d(2))
            shape = (convolution.channels, height // 2, width // 2)
    layers.append(nn.Flatten())
    width = math.prod(shape)
    for units in architecture.hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    layers.append(nn.Linear(width, num_classes))
    return layers

"""Convolutions, then hidden layers, then the output layer.

The network of 1,474,550 parameters is the one of federated-averaging papers on
28 x 28 images with a hidden layer of 452 units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Convolution:
    """A convolution that keeps height and width, ReLU, and perhaps 2 x 2 pooling."""

    channels: int
    kernel: int  # odd, so that padding keeps the size
    pool: bool = False


@dataclass(frozen=True)
class Sequential:
    """What to build: convolutions, then hidden layers, then the output layer."""

    convolutions: tuple[Convolution, ...] = ()
    hidden: tuple[int, ...] = ()
    batch_norm: bool = False

    @property
    def needs_images(self) -> bool:
        """Whether samples must have the shape (channels, height, width)."""
        return bool(self.convolutions)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the model, with weights from torch's global generator.

        Parameters
        ----------
        input_shape : tuple[int, ...]
            Of one sample.
        num_classes : int
            Number of outputs.

        Returns
        -------
        nn.Module
            The model, on the CPU.
        """
        layers: list[nn.Module] = []
        shape = tuple(input_shape)
        for convolution in self.convolutions:
            channels, height, width = shape
            layers.append(
                nn.Conv2d(
                    channels,
                    convolution.channels,
                    convolution.kernel,
                    padding=convolution.kernel // 2,
                )
            )
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(convolution.channels))
            layers.append(nn.ReLU())
            shape = (convolution.channels, height, width)
            if convolution.pool:
                layers.append(nn.MaxPool2d(2))
                shape = (convolution.channels, height // 2, width // 2)
        layers.append(nn.Flatten())
        width = math.prod(shape)
        for units in self.hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        layers.append(nn.Linear(width, num_classes))
        return nn.Sequential(*layers)

"""Residual networks for images of about 32 x 32.

References
----------
K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR
2016, arXiv 1512.03385: section 4.2 (ResNet-20: three widths, shortcuts without
parameters) and table 1 (ResNet-18: four widths, projections).

Differences: ResNet-18 begins with a 3 x 3 convolution of step 1 instead of a 7 x 7 one
of step 2 and pooling, as is usual for images so small.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : int
        Of the first convolution and of the shortcut.
    projection : bool
        Whether a shortcut between different shapes is a 1 x 1 convolution; if not, it
        drops pixels and pads channels with zeros.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, projection: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.missing = outputs - inputs
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.projection: nn.Module | None = None
        if projection and (stride != 1 or self.missing):
            self.projection = nn.Sequential(
                _convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, ...), smaller by the stride.

        Parameters
        ----------
        x : Tensor
            Activations.

        Returns
        -------
        Tensor
            Activations.
        """
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            kept: Tensor = self.projection(x)
            return kept
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x


@dataclass(frozen=True)
class Residual:
    """What to build: stages of equal width, each but the first halves the image."""

    widths: tuple[int, ...]
    blocks: int  # of each stage
    projections: bool

    needs_images = True

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the model, with weights from torch's global generator.

        Parameters
        ----------
        input_shape : tuple[int, ...]
            Of one sample: (channels, height, width).
        num_classes : int
            Number of outputs.

        Returns
        -------
        nn.Module
            The model, on the CPU.
        """
        width = self.widths[0]
        layers: list[nn.Module] = [
            _convolution(input_shape[0], width, 3, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for stage, outputs in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                layers.append(
                    Block(width, outputs, stride, projection=self.projections)
                )
                width = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
        return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer

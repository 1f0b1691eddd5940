"""Local training and evaluation on tensors that lie where the model lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_EVALUATION_BATCH_SIZE = 2048


def train_locally(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    momentum: float,
    epochs: int,
    batch_size: int,
    seed: int,
) -> float:
    """Train by SGD on cross-entropy, batches drawn from the seed alone.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    x, y : Tensor
        Samples and labels, on the model's device.
    lr, momentum : float
        Of SGD.
    epochs, batch_size : int
        Passes over the data, and samples per step.
    seed : int
        Of the order of the samples.

    Returns
    -------
    float
        Mean loss over the steps.
    """
    # Drawn on the CPU: the same batches on every device.
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    model.train()
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator).to(y.device)
        for batch in order.split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Measure loss and accuracy.

    Parameters
    ----------
    model : nn.Module
        Left in evaluation mode.
    x, y : Tensor
        Samples and labels, on the model's device.

    Returns
    -------
    tuple[float, float]
        Mean cross-entropy and share of correct predictions.
    """
    model.eval()
    loss, correct = 0.0, 0
    for batch_x, batch_y in zip(
        x.split(_EVALUATION_BATCH_SIZE), y.split(_EVALUATION_BATCH_SIZE), strict=True
    ):
        logits = model(batch_x)
        loss += float(functional.cross_entropy(logits, batch_y, reduction="sum"))
        correct += int((logits.argmax(dim=1) == batch_y).sum())
    return loss / len(y), correct / len(y)

"""Local training and evaluation on tensors that lie where the model lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import choose

_EVALUATION_BATCH_SIZE = 256

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    precision: str = "float32",
) -> float:
    """Train by SGD with momentum on cross-entropy, batches drawn from the seed alone.

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
    precision : str
        Of the products in forward and backward pass, one of `PRECISIONS`; parameters,
        sums and steps are float32 in any case.

    Returns
    -------
    float
        Mean loss over the steps.
    """
    # Drawn on the CPU: the same batches on every device.
    generator = torch.Generator().manual_seed(seed)
    x = channels_last(model, x)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    model.train()
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator).to(y.device)
        for batch in order.split(batch_size):
            with computing_in(precision, y.device):
                loss = functional.cross_entropy(model(x[batch]), y[batch])
            gradients = torch.autograd.grad(loss, parameters)
            # By hand: torch.optim imports torch's compiler, seconds in every process.
            with torch.no_grad():
                for p, v, g in zip(parameters, velocities, gradients, strict=True):
                    p.sub_(v.mul_(momentum).add_(g), alpha=lr)
            losses.append(loss.detach())
    model.to(memory_format=torch.contiguous_format)
    return float(torch.stack(losses).mean())


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Differentiate the mean cross-entropy over all samples at once.

    Parameters
    ----------
    model : nn.Module
        Left in training mode, as it is trained.
    x, y : Tensor
        Samples and labels, on the model's device.

    Returns
    -------
    dict[str, Tensor]
        By the names of the model's parameters.
    """
    model.train()
    x = channels_last(model, x)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = functional.cross_entropy(model(x), y)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


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
    x = channels_last(model, x)
    loss, correct = 0.0, 0
    for batch_x, batch_y in zip(
        x.split(_EVALUATION_BATCH_SIZE), y.split(_EVALUATION_BATCH_SIZE), strict=True
    ):
        logits = model(batch_x)
        loss += float(functional.cross_entropy(logits, batch_y, reduction="sum"))
        correct += int((logits.argmax(dim=1) == batch_y).sum())
    return loss / len(y), correct / len(y)


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """Open a context in which products are computed in another precision.

    Parameters
    ----------
    precision : str
        One of `PRECISIONS`.
    device : torch.device
        Where.

    Returns
    -------
    torch.autocast
        The context; it does nothing for float32.
    """
    dtype = choose(PRECISIONS, precision, "precision")
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def channels_last(model: nn.Module, x: Tensor) -> Tensor:
    """Lay images and kernels out as convolutions are fastest on (1.4 times, CPU).

    Parameters
    ----------
    model : nn.Module
        Its kernels are laid out in place, if the samples are images.
    x : Tensor
        Samples.

    Returns
    -------
    Tensor
        The samples.
    """
    if x.ndim != 4:
        return x
    model.to(memory_format=torch.channels_last)
    return x.to(memory_format=torch.channels_last)

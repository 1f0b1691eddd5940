"""Problems with full local gradients, and a loop without Flower, to check theory.

There are no batches, no local steps and no network here: what remains is the method.
All numbers are float64, so that a linear rate shows down to 1e-20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank.feedback import Feedback
from fl_lowrank.theory import Smoothness, safe_step

_VECTOR = "x"  # feedbacks work on named tensors; here there is one


@dataclass(frozen=True)
class Problem:
    """The mean of n smooth functions f_i of one vector.

    Attributes
    ----------
    gradients : Callable[[Tensor], Tensor]
        From x, shape (d,), all local gradients, shape (n, d).
    num_clients, dimension : int
        n and d.
    smoothness : float
        L, the Lipschitz constant of the mean's gradient.
    local_smoothness : Tensor
        L_i of each local gradient, shape (n,).
    """

    gradients: Callable[[Tensor], Tensor]
    num_clients: int
    dimension: int
    smoothness: float
    local_smoothness: Tensor

    def safe_step(self, feedback: Feedback, compressor: fll.Compressor) -> float:
        """Give the largest step for which convergence is proven.

        Parameters
        ----------
        feedback : Feedback
            The method.
        compressor : fll.Compressor
            Applied to each client's vector.

        Returns
        -------
        float
            See `fl_lowrank.theory.safe_step`.
        """
        local = self.local_smoothness.tolist()
        guarantee = compressor.guarantee((self.dimension,))
        return safe_step(feedback, guarantee, Smoothness(self.smoothness, local))


def heterogeneous_quadratics(
    num_clients: int, dimension: int, *, condition: float = 100.0, seed: int = 0
) -> Problem:
    """Make f_i(x) = (x - b_i)' A_i (x - b_i) / 2 with random A_i and b_i.

    Parameters
    ----------
    num_clients, dimension : int
        Number and size.
    condition : float
        Largest over smallest eigenvalue of each A_i; the largest are from 1 to 2.
    seed : int
        Of the eigenvectors, scales and minimizers.

    Returns
    -------
    Problem
        Local minimizers differ, so that local gradients do not vanish at the optimum.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(num_clients, dimension, dimension)).Q
    scales = torch.linspace(1, 2, num_clients, dtype=torch.float64)
    powers = torch.linspace(-1, 0, dimension, dtype=torch.float64)
    spectra = scales[:, None] * condition**powers  # (n, d)
    matrices = basis * spectra[:, None, :] @ basis.mT  # (n, d, d)
    minimizers = normal(num_clients, dimension)
    return Problem(
        lambda x: torch.einsum("nij,nj->ni", matrices, x - minimizers),
        num_clients,
        dimension,
        float(torch.linalg.eigvalsh(matrices.mean(dim=0))[-1]),
        spectra[:, -1],
    )


def logistic_regression(
    features: Tensor, labels: Tensor, num_clients: int, *, l2: float
) -> Problem:
    """Make regularized logistic regression, samples sorted by label over clients.

    Parameters
    ----------
    features : Tensor
        Shape (samples, d).
    labels : Tensor
        0 or 1, shape (samples,). Sorted and cut: most clients see one label only.
    num_clients : int
        Number of clients; samples that do not divide evenly are left out.
    l2 : float
        f_i(x) = mean log(1 + exp(-y a'x)) + l2 |x|^2 / 2 with y = -1 or 1.

    Returns
    -------
    Problem
        The problem.
    """
    size = len(labels) // num_clients
    order = torch.sort(labels, stable=True).indices[: size * num_clients]
    signs = labels[order].double() * 2 - 1
    rows = features[order].double() * signs[:, None]
    rows = rows.reshape(num_clients, size, -1)  # (n, samples, d)
    # The second derivative of log(1 + exp(-t)) is at most 1/4.
    hessians = rows.mT @ rows / (4 * size)

    def gradients(x: Tensor) -> Tensor:
        weights = torch.sigmoid(-(rows @ x))  # (n, samples)
        return l2 * x - torch.einsum("ns,nsd->nd", weights, rows) / size

    return Problem(
        gradients,
        num_clients,
        features.shape[1],
        float(torch.linalg.eigvalsh(hessians.mean(dim=0))[-1]) + l2,
        torch.linalg.eigvalsh(hessians)[:, -1] + l2,
    )


def run_feedback(
    problem: Problem,
    feedback: Feedback,
    compressor: fll.Compressor,
    *,
    step: float,
    num_rounds: int,
    tolerance: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Descend along compressed gradients of all clients, every message applied.

    Parameters
    ----------
    problem : Problem
        What to minimize, from x = 0.
    feedback : Feedback
        The memory around the compressor; settings that it leaves out are chosen by the
        compressor's guarantee.
    compressor : fll.Compressor
        Applied to each client's vector.
    step : float
        Of gradient descent.
    num_rounds : int
        At most so many steps.
    tolerance : float
        Stop once the squared norm of the gradient is at most this.
    seed : int
        Of the compressor.

    Returns
    -------
    list[float]
        Squared norm of the mean gradient before each step, and after the last.
    """
    feedback = feedback.fitted(compressor.guarantee((problem.dimension,)))
    clients = range(problem.num_clients)
    x = torch.zeros(problem.dimension, dtype=torch.float64)
    memories = [feedback.init({_VECTOR: x}) for _ in clients]
    states = [compressor.init(x.shape) for _ in clients]
    total = torch.zeros_like(x)  # the receiver's sum of all memories
    history: list[float] = []
    for number in range(num_rounds + 1):
        gradients = problem.gradients(x)
        history.append(float(gradients.mean(dim=0).square().sum()))
        if number == num_rounds or history[-1] <= tolerance:
            break
        arrived = torch.zeros_like(x)
        shares = torch.zeros_like(x)
        for i in clients:
            memories[i], to_send = feedback.prepare(
                memories[i], {_VECTOR: gradients[i]}
            )
            payload, states[i] = compressor.encode(
                to_send[_VECTOR], states[i], fll.rng.stream(seed, i, number)
            )
            sent = {_VECTOR: fll.decode(payload)}
            memories[i] = feedback.settle(memories[i], sent, applied=True)
            arrived += sent[_VECTOR]
            for shared in feedback.share(sent).values():
                shares += shared
        n = problem.num_clients
        estimate = feedback.estimate({_VECTOR: total}, {_VECTOR: arrived}, n, n)
        total += shares
        x = x - step * estimate[_VECTOR]
    return history

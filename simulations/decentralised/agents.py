"""Copies of one model, as rows of one tensor, and their local training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from fl_lowrank.consensus import Flows, rest
from fl_lowrank.consensus.choco import rows_as_tensors
from fl_lowrank.wire import TensorLayout

from ..training import channels_last, computing_in

_RECOMPUTE_SAMPLES = 1024
_RECOMPUTE_BATCH_SIZE = 256
_IMAGES_NDIM = 4

Batch = tuple[int, Tensor, Tensor]  # agent, samples, labels


class Agents:
    """All agents' models; they start from the same weights.

    Parameters
    ----------
    model : nn.Module
        Says what an agent trains; on the device and in the dtype of the training. It is
        used as the place where an agent's parameters are put to be trained.
    num_agents : int
        How many.
    momentum : float
        Of SGD, local to each agent.
    precision : str
        Of the products in training, see `simulations.training`.

    Attributes
    ----------
    parameters, statistics : Tensor
        Shapes (agents, d) and (agents, s): the model's parameters, and the floating
        point buffers of its normalisation layers.
    velocities : Tensor | None
        Shape (agents, d): momentum local to each agent; None without momentum.
    layout : dict[str, TensorLayout]
        The tensors that make up a row of `parameters`.
    """

    def __init__(
        self, model: nn.Module, num_agents: int, *, momentum: float, precision: str
    ) -> None:
        self.model = model
        self.momentum = momentum
        self.precision = precision
        self._named = dict(model.named_parameters())
        self._buffers = [b for b in model.buffers() if b.dtype.is_floating_point]
        self.layout = {
            k: TensorLayout(tuple(p.shape), p.dtype) for k, p in self._named.items()
        }
        parameters, statistics = self.held()
        self.parameters = parameters.repeat(num_agents, 1)
        self.statistics = statistics.repeat(num_agents, 1)
        self.velocities = torch.zeros_like(self.parameters) if momentum else None
        self._parameters_rest, self._statistics_rest = (
            torch.zeros_like(x, dtype=rest.DTYPE)
            for x in (self.parameters, self.statistics)
        )
        self._vectorised = _is_vectorisable(model)
        self._gradients = vmap(grad_and_value(self._loss))

    def train(self, batches: Sequence[Batch], lr: float) -> float:
        """Take one step of SGD on the cross-entropy of each batch.

        Agents whose model is made of linear layers alone take it together (vmap);
        batched convolutions would be slower than one after the other.

        Parameters
        ----------
        batches : Sequence[Batch]
            At most one for each agent, all of the same size; the others rest.
        lr : float
            The step.

        Returns
        -------
        float
            Mean loss.
        """
        if self._vectorised:
            agents = torch.tensor([agent for agent, _, _ in batches])
            x = torch.stack([x for _, x, _ in batches])
            y = torch.stack([y for _, _, y in batches])
            rows = self.parameters[agents.to(self.parameters.device)]
            found, losses = self._gradients(rows, x, y)
            for (agent, _, _), gradient in zip(batches, found, strict=True):
                self._descend(agent, rows_as_tensors(gradient, self.layout), lr)
            return float(losses.mean())
        return sum(self._train_one(*batch, lr) for batch in batches) / len(batches)

    def gain_all(self, flows: Flows, edges: Tensor) -> None:
        """Mix parameters and statistics along edges.

        Parameters
        ----------
        flows : Flows
            The rule.
        edges : Tensor
            Positions in the topology's edges, in the order in which they mix, int64.
        """
        rest.gain(
            self.parameters,
            self._parameters_rest,
            lambda part: flows.of(x := self.parameters[:, part], x.shape[1], edges),
            flows.topology.vertices_at(edges),
        )
        self.gain_statistics(flows, edges)

    def gain_statistics(self, flows: Flows, edges: Tensor) -> None:
        """Mix the statistics alone; arguments as of `gain_all`."""
        rest.gain(
            self.statistics,
            self._statistics_rest,
            lambda part: flows.of(self.statistics[:, part], 0, edges),
            flows.topology.vertices_at(edges),
        )

    def load(self, parameters: Tensor, statistics: Tensor) -> nn.Module:
        """Put a row of parameters and one of statistics into the model.

        Parameters
        ----------
        parameters, statistics : Tensor
            Shapes (d,) and (s,).

        Returns
        -------
        nn.Module
            The model; it is the same object for all agents.
        """
        with torch.no_grad():
            for p, value in zip(
                self._named.values(),
                rows_as_tensors(parameters, self.layout).values(),
                strict=True,
            ):
                p.copy_(value)
            self._load_statistics(statistics)
        return self.model

    def held(self) -> tuple[Tensor, Tensor]:
        """Copy what is in the model, as `load` takes it.

        Returns
        -------
        tuple[Tensor, Tensor]
            Parameters and statistics, shapes (d,) and (s,).
        """
        parameters = _flat(self._named.values())
        return parameters, _flat(self._buffers).to(parameters)

    @torch.no_grad()
    def recomputed(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Compute the statistics of normalisation layers anew.

        Parameters
        ----------
        parameters : Tensor
            Shape (d,).
        x : Tensor
            Samples; the first 1024 are used.

        Returns
        -------
        Tensor
            Means over the batches, shape (s,).
        """
        model = self.load(parameters, self.statistics[0]).train()
        layers = [
            m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]
        usual = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a mean over all batches
        for batch in x[:_RECOMPUTE_SAMPLES].split(_RECOMPUTE_BATCH_SIZE):
            model(channels_last(model, batch))
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum
        return _flat(self._buffers).to(parameters)

    def _load_statistics(self, statistics: Tensor) -> None:
        start = 0
        for buffer in self._buffers:
            part = statistics[start : start + buffer.numel()]
            buffer.copy_(part.view(buffer.shape))
            start += buffer.numel()

    def _train_one(self, agent: int, x: Tensor, y: Tensor, lr: float) -> float:
        self._load_statistics(self.statistics[agent])
        model, x = self.model.train(), channels_last(self.model, x)
        # Trained where they lie: with small batches, copies of them take as long.
        rows = rows_as_tensors(self.parameters[agent], self.layout)
        leaves = {name: _leaf(value, like=x) for name, value in rows.items()}
        with computing_in(self.precision, y.device):
            loss = functional.cross_entropy(functional_call(model, leaves, (x,)), y)
        found = torch.autograd.grad(loss, list(leaves.values()))
        self._descend(agent, dict(zip(leaves, found, strict=True)), lr)
        if self._buffers:
            self.statistics[agent] = _flat(self._buffers)
        return float(loss.detach())

    def _loss(self, row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values = rows_as_tensors(row, self.layout)
        with computing_in(self.precision, y.device):
            return functional.cross_entropy(
                functional_call(self.model, values, (x,)), y
            )

    def _descend(self, agent: int, gradients: Mapping[str, Tensor], lr: float) -> None:
        parameters = rows_as_tensors(self.parameters[agent], self.layout)
        velocities = dict[str, Tensor]()
        if self.velocities is not None:
            velocities = rows_as_tensors(self.velocities[agent], self.layout)
        for name, gradient in gradients.items():
            step = gradient.contiguous()
            if velocities:
                step = velocities[name].mul_(self.momentum).add_(step)
            parameters[name].sub_(step, alpha=lr)


def _leaf(value: Tensor, like: Tensor) -> Tensor:
    """Give a tensor to differentiate by; kernels in the layout of the images."""
    if value.ndim == like.ndim == _IMAGES_NDIM:
        value = value.contiguous(memory_format=torch.channels_last)
    return value.detach().requires_grad_()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    parts = [tensor.detach().reshape(-1) for tensor in tensors]
    return torch.cat(parts) if parts else torch.zeros(0)


def _is_vectorisable(model: nn.Module) -> bool:
    with_own = [m for m in model.modules() if list(m.parameters(recurse=False))]
    return all(isinstance(m, nn.Linear) for m in with_own)

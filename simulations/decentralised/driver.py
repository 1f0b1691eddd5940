"""One run: train, mix, measure, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fl_lowrank.errors import InputError

from ..data import Dataset, load_dataset
from ..errors import SimulationError
from ..results import Round, RunFolder
from ..training import evaluate
from .building import placed, set_up
from .graphs import read_graph
from .rates import learning_rate
from .samples import Batches, share_out, steps_in_epoch
from .settings import Settings


class Training:
    """All agents, step by step.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    data : Dataset | None
        Instead of the data set that the settings name.

    Attributes
    ----------
    steps_per_epoch : int
        Steps in which the agents, together, see as many samples as there are.
    """

    def __init__(self, settings: Settings, data: Dataset | None = None) -> None:
        self.settings = settings
        topology = read_graph(settings.topology)
        loaded = data or load_dataset(settings.dataset, settings.train_samples)
        self.data = placed(loaded, settings)
        self.periods = settings.periods_to_train(topology.num_nodes)
        self.shares = share_out(len(self.data.train_y), self.periods, settings.seed)
        self.batches = Batches(self.shares, settings.batch_size, settings.seed)
        self.setup = set_up(settings, topology, self.data)
        self.agents = self.setup.agents
        self.steps_per_epoch = steps_in_epoch(
            self.shares, self.periods, settings.batch_size
        )
        self.num_steps = 0
        self.messages = self.bytes = torch.zeros(len(topology.edges), dtype=torch.int64)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(
            self.settings, self.num_steps, self.steps_per_epoch, len(self.shares)
        )

    def step(self) -> float:
        """Train each agent that is due on a batch, then mix.

        Returns
        -------
        float
            Mean loss of those that trained; not a number if nobody did.
        """
        step, x, y = self.num_steps, self.data.train_x, self.data.train_y
        chosen = [
            (agent, self.batches.draw(agent, step // period).to(y.device))
            for agent, period in enumerate(self.periods)
            if step % period == 0
        ]
        loss = float("nan")
        if chosen:
            batches = [(agent, x[index], y[index]) for agent, index in chosen]
            loss = self.agents.train(batches, self.lr)
        sent = self.setup.method.mix(step, self.agents)
        self.messages = self.messages + sent.messages
        self.bytes = self.bytes + sent.bytes
        self.num_steps += 1
        return loss

    def measure(self) -> Round:
        """Evaluate every agent, and the mean of their models.

        Returns
        -------
        Round
            Mean loss on the test set. Accuracy: mean, standard deviation over the
            agents, of each, and of the averaged model. Consensus distance: root mean
            square over the agents of the distance to the mean of the parameters, over
            the norm of the mean. Bytes so far over an edge, both ways: mean and
            largest.
        """
        agents = self.agents
        mean = agents.parameters.mean(dim=0)
        squares = [float((row - mean).square().sum()) for row in agents.parameters]
        found = [
            self._evaluated(agents.parameters[i], agents.statistics[i], share)
            for i, share in enumerate(self.shares)
        ]
        losses, accuracies = torch.tensor(found, dtype=torch.float64).T
        middle = agents.statistics.mean(dim=0)
        edges = max(len(self.bytes), 1)
        return {
            "step": self.num_steps,
            "loss": float(losses.mean()),
            "accuracy": float(accuracies.mean()),
            "accuracy_deviation": float(accuracies.std(correction=0)),
            "accuracy_agents": accuracies.tolist(),
            "accuracy_of_mean": self.accuracy_of_mean(mean, middle),
            "consensus_distance": (sum(squares) / len(squares)) ** 0.5
            / float(mean.norm()),
            "messages": int(self.messages.sum()),
            "bytes": int(self.bytes.sum()),
            "bytes_per_edge": int(self.bytes.sum()) / edges,
            "bytes_per_edge_most": max(self.bytes.tolist(), default=0),
            "bytes_uncompressed": int(self.messages.sum()) * self.setup.message_bytes,
        }

    def accuracy_of_mean(
        self, parameters: torch.Tensor, statistics: torch.Tensor
    ) -> float:
        """Evaluate the mean of all models.

        Parameters
        ----------
        parameters, statistics : Tensor
            Means over the agents, shapes (d,) and (s,).

        Returns
        -------
        float
            Accuracy on the test set.
        """
        everybody = torch.cat([share[:256] for share in self.shares])
        return self._evaluated(parameters, statistics, everybody)[1]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        total = self.settings.epochs * self.steps_per_epoch
        return min(total, self.settings.max_steps or total)

    def describe(self) -> dict[str, Any]:
        """Give what is fixed before the first step.

        Returns
        -------
        dict[str, Any]
            For the run's files.
        """
        setup = self.setup
        return {
            "num_agents": setup.topology.num_nodes,
            "edges": setup.topology.edges,
            "weights": setup.mixing.weights.tolist(),
            "rho": setup.mixing.rho,
            "algebraic_connectivity": setup.topology.algebraic_connectivity(),
            "gamma": setup.gamma,
            "gamma_rates": setup.gamma_rates,
            "message_bytes": setup.message_bytes,
            "parameters": self.agents.parameters.shape[1],
            "samples": [len(share) for share in self.shares],
            "steps_per_epoch": self.steps_per_epoch,
        }

    def _evaluated(
        self, row: torch.Tensor, statistics: torch.Tensor, share: torch.Tensor
    ) -> tuple[float, float]:
        """Give loss and accuracy on the test set."""
        if self.settings.statistics == "recomputed" and len(statistics):
            own = self.data.train_x[share.to(self.data.train_x.device)]
            statistics = self.agents.recomputed(row, own)
        model = self.agents.load(row, statistics)
        return evaluate(model, self.data.test_x, self.data.test_y)


def run(settings: Settings, on_round: Callable[[Round], None]) -> None:
    """Train as the settings say, and write the run's files.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    on_round : Callable[[Round], None]
        Is told of each evaluation.

    Raises
    ------
    SimulationError
        If the models became what a compressor refuses: NaN, or infinite.
    """
    folder = RunFolder.named(settings.out)
    training = Training(settings)
    folder.write_start(settings, training.describe())
    total = training.total_steps
    losses, start = [], time.perf_counter()
    for step in range(1, total + 1):
        try:
            losses.append(training.step())
        except InputError as error:
            raise SimulationError(
                f"{settings.out or 'run'}: diverged in step {step} ({error}); give a "
                "smaller --lr or --gamma."
            ) from error
        epoch, within = divmod(step, training.steps_per_epoch)
        if step == total or (within == 0 and epoch % settings.evaluate_every == 0):
            entry = {
                "round": step / training.steps_per_epoch,
                **training.measure(),
                "train_loss": torch.tensor(losses).nanmean().item(),
                "seconds": time.perf_counter() - start,
            }
            folder.append_round(entry)
            on_round(entry)
            losses = []


def told(entry: Round) -> str:
    """Tell of an evaluation in a line.

    Parameters
    ----------
    entry : Round
        As it is in the run's files.

    Returns
    -------
    str
        Epoch, accuracy, distance to consensus, and seconds so far.
    """
    return (
        f"epoch {entry['round']:.4g}, accuracy {entry['accuracy']:.4f} "
        f"± {entry['accuracy_deviation']:.4f}, distance "
        f"{entry['consensus_distance']:.2e}, {entry['seconds']:.0f} s"
    )


def run_named(settings: Settings) -> str:
    """Do the same in a process of its own, on one core.

    Parameters
    ----------
    settings : Settings
        The run's settings.

    Returns
    -------
    str
        The run's folder.
    """
    torch.set_num_threads(1)  # agents' batches are small: cores serve other runs
    name = Path(settings.out).parent.name

    run(settings, lambda entry: print(f"{name}: {told(entry)}", flush=True))
    return settings.out

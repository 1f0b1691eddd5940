"""What one decentralised run is asked to do, checked once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..errors import SimulationError

METHODS = ("consensus", "gossip")
DRAWS = ("replacement", "matching")
STATISTICS = ("mixed", "recomputed")
SCALINGS = ("none", "linear")
PRECISIONS = ("float32", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings; a flag of the command line is a field's name with hyphens.

    Attributes
    ----------
    dataset, model : str
        Names in the tables of `simulations.data` and `simulations.models`.
    train_samples : int
        Use only so many training samples, always the same ones; 0 uses all.
    topology : str
        Who talks to whom, such as ``cycle:4`` or ``torus:6x6``; see `graphs`. One
        vertex, ``complete:1``, is a single model.
    weights : str
        Of the edges, a name in `fl_lowrank.mixing.RULES`.
    method : str
        consensus: all edges mix whose ends are due; gossip: some edges drawn at random.
    mix_every : int
        Steps from one mixing to the next.
    train_periods : str
        Steps from one batch to the next of each agent, such as ``1,1,2,2``; a shorter
        list is repeated, nothing means 1. Data are shared out as 1 / period.
    mix_periods : str
        Steps from one mixing to the next of each agent, instead of ``mix_every``.
    gossip_edges : int
        Edges drawn for each mixing.
    gossip_draw : str
        replacement: one edge after the other; matching: edges without a common end,
        as many as fit.
    compressor : str
        Text of a compressor, or rules, for what agents send; ``none`` sends models.
    gamma : float
        Step of compressed consensus; 0 finds one before training.
    epochs : int
        Passes over all data.
    max_steps : int
        Stop after so many steps; 0 for none.
    batch_size : int
        Of each agent.
    lr, momentum : float
        Of each agent's SGD; momentum is not mixed.
    lr_scaling : str
        linear multiplies the rate by the number of agents.
    warmup_epochs : float
        Epochs in which the rate rises linearly from 0.
    milestones : str
        Shares of the training, such as ``0.5,0.75``, where the rate falls tenfold.
    precision : str
        Of the products in training: float32 or bfloat16; float64 is for everything.
    statistics : str
        Of normalisation layers: mixed with the parameters, or recomputed from an
        agent's own data before evaluation.
    evaluate_every : int
        Epochs between evaluations of all agents.
    device : str
        A device of torch; auto takes a GPU if there is one.
    seed : int
        Of initial weights, data shares, batches, draws and compressors.
    out : str
        Folder for the results; empty for none.
    """

    dataset: str = "digits"
    model: str = "digits-cnn"
    train_samples: int = 0
    topology: str = "cycle:4"
    weights: str = "metropolis"
    method: str = "consensus"
    mix_every: int = 1
    train_periods: str = ""
    mix_periods: str = ""
    gossip_edges: int = 4
    gossip_draw: str = "replacement"
    compressor: str = "none"
    gamma: float = 0.0
    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 16
    lr: float = 0.05
    momentum: float = 0.9
    lr_scaling: str = "none"
    warmup_epochs: float = 1.0
    milestones: str = ""
    precision: str = "float32"
    statistics: str = "mixed"
    evaluate_every: int = 1
    device: str = "auto"
    seed: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise SimulationError(
                    f"{flag(name)} must be at least {low:g}, found {value!r}."
                )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SimulationError(
                    f"{flag(name)} must be one of {', '.join(choices)}, found "
                    f"{getattr(self, name)!r}."
                )
        if self.method == "gossip" and self.compressor != "none":
            raise SimulationError(
                "--compressor is for --method consensus: the public copies of "
                "compressed consensus need all neighbours to listen, found gossip."
            )
        if self.method == "gossip" and self.mix_periods:
            raise SimulationError(
                "--mix-periods is for --method consensus; gossip mixes --mix-every."
            )
        if self.gamma > 1.0 or (self.gamma and self.compressor == "none"):
            raise SimulationError(
                "--gamma is the step of a --compressor, at most 1 (0 finds one), found "
                f"{self.gamma:g} with --compressor {self.compressor!r}."
            )
        if any(not 0.0 < share < 1.0 for share in self.milestone_shares()):
            raise SimulationError(
                f"--milestones must be between 0 and 1, found {self.milestones!r}."
            )

    def periods_to_train(self, num_agents: int) -> list[int]:
        """Give each agent's steps from one batch to the next.

        Parameters
        ----------
        num_agents : int
            How many there are.

        Returns
        -------
        list[int]
            A period each, at least 1.
        """
        return _periods("train_periods", self.train_periods or "1", num_agents)

    def periods_to_mix(self, num_agents: int) -> list[int]:
        """Give each agent's steps from one mixing to the next.

        Parameters
        ----------
        num_agents : int
            How many there are.

        Returns
        -------
        list[int]
            A period each, at least 1.
        """
        text = self.mix_periods or str(self.mix_every)
        return _periods("mix_periods", text, num_agents)

    def milestone_shares(self) -> list[float]:
        """Give the shares of the training after which the rate falls.

        Returns
        -------
        list[float]
            In the order given.
        """
        return [
            _number("milestones", t, float) for t in self.milestones.split(",") if t
        ]

    def to_run_config(self) -> dict[str, Any]:
        """Return the settings under the names of the flags.

        Returns
        -------
        dict[str, Any]
            For the run's files.
        """
        return {name.replace("_", "-"): value for name, value in vars(self).items()}


_LEAST = {
    **dict.fromkeys(("train_samples", "max_steps", "warmup_epochs", "momentum"), 0),
    **dict.fromkeys(("mix_every", "gossip_edges", "epochs", "batch_size"), 1),
    **{"lr": 0, "gamma": 0, "seed": 0, "evaluate_every": 1},
}
_CHOICES = {
    "method": METHODS,
    "gossip_draw": DRAWS,
    "statistics": STATISTICS,
    "lr_scaling": SCALINGS,
    "precision": PRECISIONS,
}


def flag(name: str) -> str:
    """Name the flag of a field.

    Parameters
    ----------
    name : str
        The field.

    Returns
    -------
    str
        As on the command line.
    """
    return "--" + name.replace("_", "-")


def _periods(name: str, text: str, num_agents: int) -> list[int]:
    found = [_number(name, part, int) for part in text.split(",")]
    if min(found) < 1 or len(found) > num_agents:
        raise SimulationError(
            f"{flag(name)} must be at most {num_agents} numbers of at least 1, one "
            f"for each agent, found {text!r}."
        )
    return [found[i % len(found)] for i in range(num_agents)]


def _number(name: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise SimulationError(
            f"{flag(name)} must be numbers with commas between, found {text!r}."
        ) from None

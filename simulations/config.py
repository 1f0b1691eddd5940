"""The run config: what one run is asked to do, checked once, the same everywhere.

The keys and their defaults stand in ``[tool.flwr.app.config]`` of pyproject.toml,
because Flower refuses a key that is not there.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from fl_lowrank.schedules import Cosine

from .errors import SimulationError

PROJECT_FOLDER = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One run's settings; a run config key is a field's name with hyphens.

    Attributes
    ----------
    dataset, model : str
        Names in the tables of `simulations.data` and `simulations.models`.
    train_samples : int
        Use only so many training samples, always the same ones; 0 uses all.
    partition : str
        How labels are spread over the clients: iid, dirichlet or pathological.
    alpha : float
        Dirichlet concentration: the smaller, the more the clients' labels differ.
    size_skew : float
        Exponent s of the clients' sizes, which fall as rank ** -s; 0 for equal sizes.
    classes_per_client : int
        Classes a client holds in the pathological partition.
    num_rounds : int
        Communication rounds.
    fraction_train, fraction_evaluate : float
        Share of the clients that trains, and that evaluates, in a round.
    evaluate_every : int
        Rounds between evaluations of the server's model on the test set; the model is
        also evaluated before the first round and after the last one.
    local_epochs, batch_size : int
        A client's passes over its data in a round, and samples per step.
    lr, momentum : float
        The client's SGD.
    lr_end_factor : float
        What is left of `lr` in the last round; it falls by half a cosine.
    precision : str
        Of the products in a client's training: float32, or bfloat16, which is faster on
        processors and GPUs that have it. Parameters and updates are float32 with both.
    strategy : str
        The server's optimizer: fedavg, fedavgm or fedadam.
    server_lr : float
        The server's step; fedavg has none.
    uplink, feedback : str
        Compressor text and feedback of the updates; uplink ``none`` turns both off.
    memory : str
        What the server remembers of the feedback: a ``sum`` over all clients, or
        ``per-node``, a vector of every client on disk.
    downlink : str
        Compressor text of the models; ``identity()`` sends them as they are.
    decentralised : str
        If not empty, training without a centre instead: an experiment and flags as of
        ``python -m simulations.decentralised``, which name one run. Of the other keys
        only `timeout` and `out` are used then, and the clients are the agents.
    timeout : float
        Seconds the server waits for a round's replies.
    seed : int
        Of the partition, the initial model, batches, sampling and compressors.
    out : str
        Absolute folder for the results; empty for none.
    checkpoint : str
        Absolute path of a file that is replaced after every round, from which a run
        goes on if it is there; empty for none.
    evict : str
        Client keys with commas between, whose memories are taken out of the checkpoint
        before the run goes on from it.
    evict_after : int
        Rounds after which a silent client is taken out of the memories; 0 for never.
    max_norm : float
        Replies so many times longer than usual ones are left out; 0 for no such limit.
    """

    dataset: str
    model: str
    train_samples: int
    partition: str
    alpha: float
    size_skew: float
    classes_per_client: int
    num_rounds: int
    fraction_train: float
    fraction_evaluate: float
    evaluate_every: int
    local_epochs: int
    batch_size: int
    lr: float
    lr_end_factor: float
    momentum: float
    precision: str
    strategy: str
    server_lr: float
    uplink: str
    feedback: str
    memory: str
    downlink: str
    decentralised: str
    timeout: float
    seed: int
    out: str
    checkpoint: str
    evict: str
    evict_after: int
    max_norm: float

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high or not math.isfinite(value):
                raise SimulationError(
                    f"run config: {_key(name)} must be from {low:g} to {high:g}, "
                    f"found {value!r}."
                )
        for name in ("out", "checkpoint"):
            path = getattr(self, name)
            if path and not Path(path).is_absolute():
                raise SimulationError(
                    f"run config: {name} must be an absolute path, since Flower runs "
                    f"the app in a folder of its own, found {path!r}."
                )
        if self.evict and not self.checkpoint:
            raise SimulationError(
                "run config: evict takes clients out of a checkpoint's memories; name "
                "the checkpoint too."
            )

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Settings:
        """Read a run config, complete and without unknown keys.

        Parameters
        ----------
        run_config : Mapping[str, Any]
            Flower's ``context.run_config``.

        Returns
        -------
        Settings
            The same, typed and checked.
        """
        types = {_key(name): kind for name, kind in get_type_hints(cls).items()}
        unknown = sorted(set(run_config) - set(types))
        missing = sorted(set(types) - set(run_config))
        if unknown or missing:
            raise SimulationError(
                f"run config: unknown keys {unknown or 'none'}, missing keys "
                f"{missing or 'none'}; the keys are {', '.join(types)}."
            )
        values = {
            key.replace("-", "_"): _convert(key, run_config[key], kind)
            for key, kind in types.items()
        }
        return cls(**values)

    @property
    def evicted(self) -> list[str]:
        """Client keys in `evict`."""
        return [key.strip() for key in self.evict.split(",") if key.strip()]

    def evaluates_after(self, server_round: int) -> bool:
        """Tell whether the server evaluates its model after a round.

        Parameters
        ----------
        server_round : int
            The round; 0 is before the first.

        Returns
        -------
        bool
            Whether it does.
        """
        return (
            server_round % self.evaluate_every == 0 or server_round == self.num_rounds
        )

    def lr_in(self, server_round: int) -> float:
        """Give the client's step in a round.

        Parameters
        ----------
        server_round : int
            The round, from 1.

        Returns
        -------
        float
            `lr` in the first round, `lr_end_factor` times that in the last.
        """
        if self.num_rounds == 1:
            return self.lr
        end = self.lr * self.lr_end_factor
        return Cosine(self.lr, end, rounds=self.num_rounds).of(server_round)

    def to_run_config(self) -> dict[str, Any]:
        """Return the settings under Flower's keys.

        Returns
        -------
        dict[str, Any]
            What `from_run_config` reads.
        """
        return {_key(name): value for name, value in vars(self).items()}


_MANY = 1e9
_RANGES = (
    ("train_samples", 0, _MANY),
    ("alpha", 1e-3, _MANY),
    ("size_skew", 0, 3),
    ("classes_per_client", 1, _MANY),
    ("num_rounds", 1, _MANY),
    ("fraction_train", 1e-9, 1),
    ("fraction_evaluate", 0, 1),
    ("evaluate_every", 1, _MANY),
    ("local_epochs", 1, _MANY),
    ("batch_size", 1, _MANY),
    ("lr", 1e-12, _MANY),
    ("lr_end_factor", 1e-6, 1),
    ("momentum", 0, 1),
    ("server_lr", 1e-12, _MANY),
    ("timeout", 1, _MANY),
    ("seed", 0, 2**63 - 1),
    ("evict_after", 0, _MANY),
    ("max_norm", 0, _MANY),
)


def default_run_config() -> dict[str, Any]:
    """Read the defaults of the run config from pyproject.toml.

    Returns
    -------
    dict[str, Any]
        Every key with its default.
    """
    with (PROJECT_FOLDER / "pyproject.toml").open("rb") as file:
        config: dict[str, Any] = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    return config


def _key(name: str) -> str:
    return name.replace("_", "-")


def _convert(key: str, value: Any, kind: type) -> Any:
    # TOML keeps 1 and 1.0 apart; a user who types lr=1 means the number.
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise SimulationError(
            f"run config: {key} must be {kind.__name__}, found {value!r}."
        )
    return value

"""What is minimized, what goes wrong on the way, and who remembers what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import fl_lowrank as fll
from fl_lowrank.feedback import EF21

from ..data import load_dataset
from ..loopback import Fault, Faults, RandomFaults, ScriptedFaults
from ..quadratics import Problem, heterogeneous_quadratics, logistic_regression
from .commit_on_send import CommitOnSend
from .descent import Descent, descend
from .ends import Ends
from .settling import Settling

NUM_CLIENTS = 20
COMPRESSOR = fll.TopK(fraction=0.1)
#: Share of the requests, replies or clients that meet a fate.
RATE = 0.2
_SEED = 1


@dataclass(frozen=True)
class Setting:
    """A problem and how it is minimized.

    Attributes
    ----------
    problem : Problem
        What to minimize.
    step : float
        Of the descent.
    num_rounds : int
        The minimum is to be reached in so many.
    loses_at : int
        Round in which client 0 loses its memory, where that is the fate.
    """

    problem: Problem
    step: float
    num_rounds: int
    loses_at: int


@dataclass(frozen=True)
class Fate:
    """What goes wrong.

    Attributes
    ----------
    faults : Callable[[Setting], Faults]
        The policy.
    parts : bool
        Whether it parts memories that are committed on send. A lost request does not:
        a client that was not reached has sent nothing.
    """

    faults: Callable[[Setting], Faults]
    parts: bool = True


def _one_lost_memory(setting: Setting) -> Faults:
    return ScriptedFaults({(setting.loses_at, 0): Fault(lose_memory=True)})


FATES = {
    "nothing lost": Fate(lambda _: Faults(), parts=False),
    "20% of requests lost": Fate(
        lambda _: RandomFaults(_SEED, lose_request=RATE), parts=False
    ),
    "20% of replies lost": Fate(lambda _: RandomFaults(_SEED, lose_reply=RATE)),
    "20% killed after the reply": Fate(
        lambda _: RandomFaults(_SEED, crash_after_reply=RATE)
    ),
    "one lost memory": Fate(_one_lost_memory),
}


def _settling(problem: Problem, *, save_first: bool = True) -> Ends:
    n, d = problem.num_clients, problem.dimension
    return Settling(EF21(), COMPRESSOR, n, d, save_first=save_first)


#: How the two ends of a memory are kept.
WAYS: dict[str, Callable[[Problem], Ends]] = {
    "protocol": _settling,
    "protocol, saved late": lambda p: _settling(p, save_first=False),
    "commit on send": lambda p: CommitOnSend(
        EF21(), COMPRESSOR, p.num_clients, p.dimension
    ),
}


def quadratics(dimension: int = 50) -> Problem:
    """Give heterogeneous quadratics, each of condition number 100."""
    return heterogeneous_quadratics(NUM_CLIENTS, dimension)


def mushrooms() -> Problem:
    """Give logistic regression, L2 0.01, on all 8124 mushrooms sorted by label.

    Raises
    ------
    SimulationError
        If the data are not there.
    """
    data = load_dataset("mushrooms")
    features = torch.cat((data.train_x, data.test_x))
    labels = torch.cat((data.train_y, data.test_y))
    return logistic_regression(features, labels, NUM_CLIENTS, l2=0.01)


def _at_one_over_l(problem: Problem, num_rounds: int) -> Setting:
    return Setting(problem, 1.0 / problem.smoothness, num_rounds, num_rounds // 10)


def _proven() -> Setting:
    problem = quadratics()
    return Setting(problem, problem.safe_step(EF21(), COMPRESSOR), 5000, 1000)


#: Problems, with step 1/L and once with that of EF21's theorem, which is for full
#: participation.
SETTINGS: dict[str, Callable[[], Setting]] = {
    "quadratics": lambda: _at_one_over_l(quadratics(), 2000),
    "quadratics-proven-step": _proven,
    "mushrooms": lambda: _at_one_over_l(mushrooms(), 5000),
}


def run(
    setting: Setting, fate: str, way: str, num_rounds: int | None = None
) -> Descent:
    """Descend with half of the clients in each round.

    Parameters
    ----------
    setting : Setting
        The problem.
    fate, way : str
        Keys of `FATES` and `WAYS`.
    num_rounds : int, optional
        Instead of the setting's.

    Returns
    -------
    Descent
        How it went; the gradient's norm is to be at most 1e-10.
    """
    return descend(
        setting.problem,
        WAYS[way](setting.problem),
        FATES[fate].faults(setting),
        step=setting.step,
        num_rounds=setting.num_rounds if num_rounds is None else num_rounds,
    )

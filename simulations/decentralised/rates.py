"""The learning rate of a step."""

from __future__ import annotations

from .settings import Settings


def learning_rate(
    settings: Settings, step: int, steps_per_epoch: int, num_agents: int
) -> float:
    """Give the rate: a linear warm-up, then steps down at the milestones.

    P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
    arXiv 1706.02677: sections 2.1 (linear scaling) and 2.2 (gradual warm-up).

    Parameters
    ----------
    settings : Settings
        The run's settings.
    step : int
        From 0.
    steps_per_epoch : int
        Of this run.
    num_agents : int
        Factor of the linear scaling.

    Returns
    -------
    float
        The same for all agents.
    """
    rate = settings.lr * (num_agents if settings.lr_scaling == "linear" else 1)
    warmup = settings.warmup_epochs * steps_per_epoch
    if step + 1 < warmup:
        rate *= (step + 1) / warmup
    total = settings.epochs * steps_per_epoch
    passed = sum(step >= share * total for share in settings.milestone_shares())
    return float(rate * 0.1**passed)

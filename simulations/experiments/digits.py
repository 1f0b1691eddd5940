"""The default task: handwritten digits, 20 clients, small enough for two cores.

Twenty clients with Dirichlet(0.5) labels and sizes from 34 to 273 samples train the
convolutional network of 55,018 parameters. The task itself is the default run config
in pyproject.toml, so that a plain ``flwr run .`` does the same.
"""

from __future__ import annotations

from .experiment import Experiment

DIGITS = Experiment(num_clients=20)

DIGITS_COMPARE = Experiment(
    num_clients=20,
    settings={"identity": {"uplink": "identity()"}, "default": {}},
    seeds=(0, 1, 2),
)

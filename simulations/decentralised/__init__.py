"""Training without a centre, in one process: all agents' parameters are one tensor.

``python -m simulations.decentralised`` runs it; see ``--help``. There is no Flower
here: this is the fast path for experiments.
"""

from __future__ import annotations

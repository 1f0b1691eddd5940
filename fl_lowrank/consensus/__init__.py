"""Training without a centre: who mixes when, and with what of each other.

Parameters of all agents are one tensor of shape (n, d). Which edges mix at a step is
`due` (own periods of unequal agents) or drawn (`draw_edges`, `draw_matching`: gossip);
`mixing.Mixing.step` and `exchange.average_pairs` do it, and keep the mean. `Choco` does
it with compressed messages.
"""

from __future__ import annotations

from .activity import draw_edges, draw_matching, due
from .choco import Choco, ChocoState, contractive
from .tuning import GAMMAS, Tuning, tune_gamma

__all__ = [
    "GAMMAS",
    "Choco",
    "ChocoState",
    "Tuning",
    "contractive",
    "draw_edges",
    "draw_matching",
    "due",
    "tune_gamma",
]

"""Training without a centre: who mixes when, and with what of each other.

Parameters of all agents are one tensor of shape (n, d). Which edges mix at a step is
`due` (own periods of unequal agents) or drawn (`draw_edges`, `draw_matching`: gossip).
What each gains is computed by `Averaging`, `Tracking` or `Pairs`, and added by `rest`,
so that the mean is kept. `Choco` does it with compressed messages.

Over a network `MailRoom` does the same for vertices that are elsewhere (`node` is their
side) and whose messages may be lost.
"""

from __future__ import annotations

from .activity import (
    Tick,
    draw_edges,
    draw_matching,
    draw_tick,
    due,
    periods_of,
    whole_number,
)
from .choco import Choco, ChocoState, contractive
from .edge_bytes import EdgeBytes
from .flows import Averaging, Flows, Pairs, Tracking
from .mail_room import MailRoom
from .parcel import CONSENSUS_KEY, FIRST_STEP_KEY, STEPS_KEY, Parcel
from .rows import Rows
from .tuning import GAMMAS, Tuning, tune_gamma

__all__ = [
    "CONSENSUS_KEY",
    "FIRST_STEP_KEY",
    "GAMMAS",
    "STEPS_KEY",
    "Averaging",
    "Choco",
    "ChocoState",
    "EdgeBytes",
    "Flows",
    "MailRoom",
    "Pairs",
    "Parcel",
    "Rows",
    "Tick",
    "Tracking",
    "Tuning",
    "contractive",
    "draw_edges",
    "draw_matching",
    "draw_tick",
    "due",
    "periods_of",
    "tune_gamma",
    "whole_number",
]

"""Training without a centre: who mixes when, and with what of each other.

Parameters of all agents are one tensor of shape (n, d). Which edges mix at a step is
`due` (own periods of unequal agents) or drawn (`draw_edges`, `draw_matching`: gossip);
`mixing.Mixing.step` and `exchange.average_pairs` do it, and keep the mean. `Choco` does
it with compressed messages.

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

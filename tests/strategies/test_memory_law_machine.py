"""Hypothesis looks for events after which a client and the server disagree.

It draws whole trainings: which messages are lost, repeated, late or out of order, where
a client dies, whose memory is lost, when the server dies and how old the checkpoint is
that it goes on from. A breach is shrunk to a short list of such events. What the law is
stands in ``memory_law/oracle.py``.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import Phase

from simulations.loopback import EventKind
from strategies.books import MemoryMode
from tests.strategies.memory_law import switches
from tests.strategies.memory_law.machine import Case, Tally, explore
from tests.strategies.memory_law.scene import LawBrokenError
from tests.strategies.memory_law.switches import Switch

#: A breach is worth the time that it takes to shrink it.
pytestmark = pytest.mark.timeout(1200)

CONTRACTIVE = (
    "*: topk(fraction=0.2)",
    "*: topk(k=2) >> natural()",
    "*: sparse_dithering()",
    "*.bias: topk(k=2); *: powersgd(rank=1)",
    "*: identity()",
)
UNBIASED = (
    "*: randk(fraction=0.4)",
    "*: randk(k=3) >> natural_stochastic()",
    "*: sparse_dithering_unbiased(omega=2)",
    "*: natural_stochastic()",
    "*: identity()",
)
UPLINKS = {
    "ef": CONTRACTIVE,
    "ef21": CONTRACTIVE,
    "ef21sgdm(momentum=0.3)": CONTRACTIVE,
    "diana(rate=0.25)": UNBIASED,
    "dasha(rate=0.3)": UNBIASED,
}
#: Error feedback leaves nothing with the server, so it has no mode.
PAIRS: list[tuple[str, MemoryMode]] = [
    ("ef", "sum"),
    *itertools.product(list(UPLINKS)[1:], ("sum", "per-node")),
]
#: What a breach of the protocol's own rules leads to in the end.
HARM = frozenset({"memory", "sum", "agreement"})
#: Of each pair in the long run: 10^5 of all.
NUM_EVENTS = -(-(10**5) // len(PAIRS))
#: What can befall a message or a client here; nothing expires within seconds.
KINDS = {*EventKind, "forgotten"} - {
    EventKind.REQUEST_EXPIRED,
    EventKind.REPLY_EXPIRED,
    EventKind.CLIENT_RAISED,
}


def case(feedback: str, memory: MemoryMode, switch: Switch = switches.nothing) -> Case:
    laws = None if switch is switches.nothing else HARM
    return Case(feedback, memory, UPLINKS[feedback], switch, laws)


@pytest.mark.parametrize(("feedback", "memory"), PAIRS)
def test_no_events_are_found_that_break_the_law(
    feedback: str, memory: MemoryMode
) -> None:
    tally = Tally()
    seed = PAIRS.index((feedback, memory))
    explore(case(feedback, memory), tally, num_trainings=4, num_steps=12, seed=seed)
    print(tally.num_events, dict(tally.network), dict(tally.law), dict(tally.uplinks))
    assert tally.num_events > 500
    for event in ("applied", "refused", "rolled back", "restart"):
        assert tally.law[event] > 0, event


@pytest.mark.slow
@pytest.mark.parametrize(("feedback", "memory"), PAIRS)
def test_nor_in_the_long_run(feedback: str, memory: MemoryMode) -> None:
    causes = ["gave up, lost", "gave up, estranged", "applied, but not saved"]
    causes += ["gave up, stale"] if feedback == "ef" else ["reset", "gave up, epoch"]
    happened = ["applied", "refused", "rolled back", "restart", "undone", "despair"]
    tally = Tally()
    seeds = itertools.count(1000 * (1 + PAIRS.index((feedback, memory))))
    # That nobody answers any more is so rare that it can take longer than all others.
    while tally.num_events < NUM_EVENTS or (
        tally.num_events < 4 * NUM_EVENTS and not tally.law["despair"]
    ):
        # Each of the compressors in turn, so that none is left out by chance.
        for uplink, seed in zip(UPLINKS[feedback], seeds, strict=False):
            one = Case(feedback, memory, (uplink,), switches.nothing, None)
            explore(one, tally, num_trainings=3, num_steps=40, seed=seed)
    print(tally.num_events, dict(tally.network), dict(tally.law), dict(tally.uplinks))
    assert set(tally.network) >= KINDS
    assert set(tally.uplinks) == set(UPLINKS[feedback])
    for event in happened + causes:
        assert tally.law[event] > 0, event


def test_nor_without_attribution_by_message_ids() -> None:
    """The tickets do alone."""
    plain = case("ef21", "sum")
    only_tickets = Case("ef21", "sum", plain.uplinks, switches.attribution)
    explore(only_tickets, Tally(), num_trainings=5, num_steps=15)


#: All others are slow.
NEEDS = [
    (switches.base_check, "ef21", "per-node"),
    (switches.servers_tickets, "ef21", "sum"),
    (switches.clients_tickets, "ef", "sum"),
    (switches.random_ids, "ef", "sum"),
]
#: Error feedback refuses no base.
ALL_NEEDS = [
    (switch, feedback, memory)
    for switch in dict.fromkeys(switch for switch, _, _ in NEEDS)
    for feedback, memory in PAIRS
    if feedback != "ef" or switch is not switches.base_check
]


@pytest.mark.parametrize(
    ("switch", "feedback", "memory"),
    [
        *NEEDS,
        *(
            pytest.param(*need, marks=pytest.mark.slow)
            for need in ALL_NEEDS
            if need not in NEEDS
        ),
    ],
)
def test_they_are_found_without(
    switch: Switch, feedback: str, memory: MemoryMode
) -> None:
    """Each part of the protocol is needed, and the machine sees that it is gone."""
    tally = Tally()
    with pytest.raises(LawBrokenError):
        explore(
            case(feedback, memory, switch),
            tally,
            num_trainings=60,
            phases=[Phase.generate],
        )
    print(tally.uplinks.total(), "trainings", tally.num_events, "events")


@pytest.mark.slow
def test_what_is_found_is_told_as_a_short_list_of_events() -> None:
    uplink = ("*: topk(fraction=0.2)",)
    broken = Case("ef21", "sum", uplink, switches.base_check, HARM)
    with pytest.raises(LawBrokenError) as caught:
        explore(broken, Tally(), num_trainings=200, num_steps=8)
    told = "\n".join(caught.value.__notes__).splitlines()
    rounds = [line for line in told if line.startswith("state.round")]
    print("\n".join(told))
    assert 1 <= len(rounds) <= 6

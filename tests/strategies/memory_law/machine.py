"""A hypothesis state machine of trainings in which anything may go wrong.

Each step is one round of the real strategy and client apps, or something that happens
between two rounds; after each one the oracle of this folder must have no complaint.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import clients.turns
import fl_lowrank.files
import strategies.turns
from strategies.books import MemoryMode

from .laws import check_agreement
from .scene import LawBrokenError, Scene, Stage, calm, set_up
from .stepwise import Stepwise
from .switches import Switch, nothing
from .weather import (
    EXCHANGES,
    NODES,
    NUM_NODES,
    ORDERS,
    SCRIPTS,
    Script,
    Weather,
)

#: Quiet rounds after which the two ends must agree.
NUM_QUIET = 4
#: Why a server may end by itself.
DESPAIR = ("introduced itself", "in a row without a usable reply")


@dataclass(frozen=True)
class Case:
    """What is trained, which part of the protocol is off, and what counts as a breach.

    Attributes
    ----------
    uplinks : tuple of str
        Each training takes one of them.
    laws : set of str, optional
        Those of `Violation` that count; left out, all do.
    """

    feedback: str
    memory: MemoryMode
    uplinks: tuple[str, ...]
    switch: Switch = nothing
    laws: frozenset[str] | None = None


@dataclass
class Tally:
    """What has happened in all trainings of a case.

    Attributes
    ----------
    uplinks, network, law : Counter
        Trainings by compressor; what happened on the way, the events that count; and
        what the oracle saw come of it.
    """

    uplinks: Counter[str] = field(default_factory=Counter)
    network: Counter[str] = field(default_factory=Counter)
    law: Counter[str] = field(default_factory=Counter)

    @property
    def num_events(self) -> int:
        return self.network.total()

    def add(self, stage: Stage) -> None:
        self.uplinks[stage.scene.uplink] += 1
        self.network.update(stage.grid.counts())
        self.law.update(stage.oracle.events)
        self.law["despair"] += len(stage.despairs)


UPLINKS = st.runner().flatmap(lambda machine: st.sampled_from(machine.case.uplinks))


class MemoryLaw(RuleBasedStateMachine):
    """One training; each example is another one."""

    def __init__(self, case: Case, tally: Tally) -> None:
        super().__init__()
        self.case = case
        self.tally = tally
        self.patch = pytest.MonkeyPatch()
        self.training: Stepwise | None = None
        self.is_over = False

    @initialize(uplink=UPLINKS)
    def begin(self, uplink: str) -> None:
        # The law must not hang on chance, and what breaks it must do so again.
        rng = random.Random("turns")
        drawn = SimpleNamespace(randbits=rng.getrandbits, token_bytes=rng.randbytes)
        self.patch.setattr(clients.turns, "secrets", drawn)
        self.patch.setattr(strategies.turns, "secrets", drawn)
        # Nobody cuts the power here.
        self.patch.setattr(fl_lowrank.files.os, "fsync", lambda fd: None)
        scene = Scene(
            self.case.feedback,
            uplink,
            num_nodes=NUM_NODES,
            num_rounds=10**6,
            num_quiet=0,
            memory=self.case.memory,
            checkpoints=True,
        )
        self.stage = set_up(scene)
        self.case.switch(self.patch, self.stage.clients)
        self.training = Stepwise(scene, self.stage)

    @rule(script=SCRIPTS, order=ORDERS, evaluate=st.booleans())
    def round_of_all(self, script: Script, order: int, evaluate: bool) -> None:
        self._round(script, order, evaluate=float(evaluate))

    @rule(script=SCRIPTS, order=ORDERS, evaluate=st.sampled_from((0.0, 0.4)))
    def round_of_some(self, script: Script, order: int, evaluate: float) -> None:
        self._round(script, order, train=0.67, evaluate=evaluate)

    @rule(script=SCRIPTS, order=ORDERS)
    def round_that_gives_no_model(self, script: Script, order: int) -> None:
        self._round(script, order, refuse_every=1)

    @rule(script=SCRIPTS, order=ORDERS, exchange=EXCHANGES)
    def round_in_which_the_server_dies(
        self, script: Script, order: int, exchange: int
    ) -> None:
        self._round(script, order, dies=exchange)

    @rule(script=SCRIPTS, order=ORDERS, older=st.integers(0, 4))
    def round_after_restart(self, script: Script, order: int, older: int) -> None:
        self._round(script, order, older=older)

    @rule(script=SCRIPTS, order=ORDERS, node=NODES)
    def round_after_lost_memory(self, script: Script, order: int, node: int) -> None:
        grid = self.stage.grid
        grid.forget(grid.node_ids[node])
        self.stage.oracle.begins(f"partition-{node}", lost_memory=True)
        self.tally.network["forgotten"] += 1
        self._round(script, order)

    def _round(
        self,
        script: Script,
        order: int = 0,
        *,
        train: float = 1.0,
        evaluate: float = 1.0,
        refuse_every: int = 0,
        dies: int | None = None,
        older: int | None = None,
    ) -> None:
        inner = self.stage.inner
        inner.fraction_train, inner.fraction_evaluate = train, evaluate
        inner.refuse_every = refuse_every
        grid = self.stage.grid
        grid.faults = Weather(grid.exchange, script, order, dies)
        self._go_on(older)

    @invariant()
    def law_holds(self) -> None:
        violations = [
            v
            for v in self.stage.oracle.verdict.violations
            if self.case.laws is None or v.law in self.case.laws
        ]
        if violations:
            self.is_over = True
            raise LawBrokenError(violations)

    def _go_on(self, older: int | None = None) -> None:
        self.is_over = True  # unless it comes back
        self.training.go_on(older=older)
        for reason in self.stage.despairs:
            assert any(words in reason for words in DESPAIR), reason
        self.is_over = False

    def teardown(self) -> None:
        try:
            if self.training is not None and not self.is_over:
                self._end_in_quiet()
        finally:
            if self.training is not None:
                self.training.close()
                self.tally.add(self.stage)
            self.patch.undo()

    def _end_in_quiet(self) -> None:
        calm(self.stage)
        for _ in range(NUM_QUIET):
            self._go_on()
        check_agreement(self.stage.oracle, self.stage.book)
        self.law_holds()


def explore(
    case: Case,
    tally: Tally,
    *,
    num_trainings: int,
    num_steps: int = 25,
    seed: int = 0,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
) -> None:
    """Let hypothesis look for a breach, always in the same places.

    Raises
    ------
    LawBrokenError
        With the shortest list of events that leads to it.
    """

    @hypothesis.seed(seed)
    def machine() -> MemoryLaw:
        return MemoryLaw(case, tally)

    logging.disable(logging.ERROR)  # thousands of lines on late replies
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=num_trainings,
                stateful_step_count=num_steps,
                phases=phases,
                deadline=None,
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=[
                    HealthCheck.too_slow,
                    HealthCheck.data_too_large,
                ],
            ),
        )
    finally:
        logging.disable(logging.NOTSET)

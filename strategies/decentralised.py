"""What the strategies without a central model have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from torch import Tensor

from fl_lowrank.consensus import (
    FIRST_STEP_KEY,
    STEPS_KEY,
    Flows,
    MailRoom,
    Rows,
    periods_of,
    whole_number,
)
from fl_lowrank.envelope import EVALUATE, TRAIN
from fl_lowrank.errors import (
    CompressionError,
    ProtocolError,
    SettingError,
    require_kind,
)
from fl_lowrank.model import layout_of
from fl_lowrank.rng import Rng, stream
from fl_lowrank.topology import Topology
from fl_lowrank.updates import patterns_of

from . import replies as reading
from .clock import Clocked, run_clock
from .ledger import Ledger
from .loop import EvaluateFn, Plan
from .node_metrics import means, numbers_in
from .patience import Patience
from .post import Post
from .survey import Survey

#: How often nodes whose answer to the last evaluation was lost are asked.
_LAST_ATTEMPTS = 3
#: Requests in a row without a usable reply that end a training: for each node, and in
#: all. Gossip asks two nodes a round, and messages are lost in good networks too.
_MAX_EMPTY_REQUESTS = 3, 24


class Decentralised(Clocked):
    """Base of `Consensus` and `Gossip`: rounds are steps of a common clock.

    In round k, which is step k - 1, the nodes at the ends of edges that mix are asked
    for their message; the local steps that were due since they were last asked are done
    then, in one go. What a node gains comes with its next request. A node that is not
    connected, or does not answer in time, does not mix.

    Parameters
    ----------
    topology : Topology
        Vertex i is the node whose ``partition-id`` is i.
    train_periods : int or sequence of int
        Rounds from one local step to the next, of all nodes or of each.
    evaluate_every : int
        Rounds between evaluations of all nodes; 0 evaluates after the last one alone.
        Then all nodes also send their models, exactly, to be measured and averaged.
    exact : sequence of str
        Patterns of arrays that travel exactly, besides running statistics. As these
        they are mixed with Metropolis weights, and are not part of the distance.
    seed : int
        Of all random draws.
    node_timeout : float
        Seconds to wait for all nodes before the first round.

    Attributes
    ----------
    survey : Survey
        The last evaluation.

    Raises
    ------
    SettingError
        If there is not one period of at least 1 for each vertex, or another setting is
        of the wrong kind.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        train_periods: int | Sequence[int] = 1,
        evaluate_every: int = 0,
        exact: Sequence[str] = (),
        seed: int = 0,
        node_timeout: float = 600.0,
    ) -> None:
        require_kind(self.name, topology, Topology, "topology.cycle(4)")
        self.topology = topology
        self.train_periods = periods_of(self.name, topology, train_periods)
        self.evaluate_every = self.whole("evaluate_every", evaluate_every, least=0)
        self.exact = patterns_of(self.name, exact)
        self.seed = seed
        self.node_timeout = node_timeout
        self._last_round = 0
        self._parts: tuple[MailRoom, Post] | None = None
        self._patience = self._fresh_patience()
        self.survey = Survey()
        self._edges = torch.zeros(0, dtype=torch.int64)
        self._trained = [0] * topology.num_nodes
        self._num_asked = 0

    @property
    def name(self) -> str:
        """Name of the strategy, in messages to the user."""
        return type(self).__name__

    def whole(self, setting: str, value: int, *, least: int = 1) -> int:
        """Give a setting that is an integer, or raise `SettingError`."""
        found = whole_number(value, least)
        if found is None:
            msg = (
                f"{self.name}: expected {setting}, an integer of at least {least}, "
                f"found {value!r}"
            )
            raise SettingError(msg)
        return found

    @property
    def draws(self) -> Rng:
        """Source of all draws; those of a step are its child."""
        return stream(self.seed, "mixing")

    @property
    def room(self) -> MailRoom:
        """The mail room of the training that was started last."""
        return self._started()[0]

    @property
    def ledger(self) -> Ledger:
        """Bytes of Flower's messages; those over the edges are in ``room.edges``."""
        return self._started()[1].ledger

    @abstractmethod
    def flows(self, rows: Rows) -> Flows:
        """Say how edges mix; asked once, before the first round."""

    @abstractmethod
    def edges_at(self, step: int) -> Tensor:
        """Give the edges that mix at a step, in order: positions, int64."""

    def codec(self) -> str:
        """Give the codec of messages; asked after `flows`."""
        return "identity()"

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train; see ``flwr.serverapp.strategy.Strategy.start``.

        Parameters
        ----------
        grid : Grid
            To the nodes.
        initial_arrays : ArrayRecord
            What all nodes start from.
        num_rounds : int
            Steps of the clock.
        timeout : float
            Seconds to wait for the replies of a round.
        train_config, evaluate_config : ConfigRecord, optional
            Sent to the nodes.
        evaluate_fn : callable, optional
            Evaluates the mean of all models on the server, after every evaluation.

        Returns
        -------
        Result
            Its arrays are the mean of the models that answered the last evaluation.

        Raises
        ------
        ProtocolError
            If not all nodes connect in time, or too many requests in a row have no
            usable reply: three for each node, and 24 in all.
        SettingError
            If the settings do not go with the model.
        """
        tensors = reading.tensors_of(initial_arrays)
        rows = Rows(layout_of(tensors), self.exact)
        if not rows.num_parameters:
            msg = (
                f"{self.name}: expected a model with parameters to mix, found "
                f"{list(tensors)} with exact={list(self.exact)}"
            )
            raise SettingError(msg)
        flows = self.flows(rows)
        room = MailRoom(flows, tensors, self.exact)
        self._parts = room, Post(self.name, room, timeout, self.node_timeout)
        self._last_round = num_rounds
        self._trained = [0] * self.topology.num_nodes
        self.survey = Survey()
        self._patience = self._fresh_patience()
        self.summary()
        self._parts[1].wait_for_all(grid)
        plan = Plan(
            grid,
            num_rounds,
            timeout,
            train_config or ConfigRecord(),
            evaluate_config or ConfigRecord(),
            evaluate_fn,
        )
        return run_clock(self, plan, initial_arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask the ends of this round's edges for their messages.

        Before an evaluation, all others that have local steps to do are asked to do
        them; they send nothing.
        """
        del arrays
        _, post = self._started()
        step = server_round - 1
        self._edges = self.edges_at(step)
        senders = set(self.topology.vertices_at(self._edges).tolist())
        connected = post.wait_for(grid, 1 if senders else 0)
        draws = self.draws.child(step)
        requests = {}
        for vertex in range(self.topology.num_nodes):
            first, count = self.steps_due(vertex, server_round)
            silent = vertex not in senders
            if silent and not (count and self.attempts_after(server_round)):
                continue
            self._trained[vertex] = server_round
            if vertex not in connected:
                continue
            requests[vertex] = post.request(
                vertex,
                connected[vertex],
                dict(config.items())
                | {
                    "server-round": server_round,
                    FIRST_STEP_KEY: first,
                    STEPS_KEY: count,
                },
                TRAIN,
                codec="" if silent else self.codec(),
                draws=draws.child(vertex).key,
            )
        if senders and not connected:
            # As long as it takes to find that out, it is not repeated often.
            third = -(-self._patience.most // 3)
            self._patience.count(usable=False, number=third)
        self._num_asked = len(requests)
        return post.sent(server_round, requests, TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord]:
        """Let messages into the public copies, and owe their flows to both ends.

        There is no central model: no arrays are given back.
        """
        room, post = self._started()
        valid, errors = post.match(server_round, replies, TRAIN)
        found = []
        for vertex, message in valid.items():
            reply = post.read(server_round, vertex, message)
            try:
                if reply is not None and reply.lossy:
                    room.enter(vertex, reply)
            except CompressionError as error:
                post.leave_out(server_round, vertex, error)
                continue
            if reply is not None:
                found.append(numbers_in(message))
        mixed = room.mix(self._edges)
        self._patience.count(
            usable=bool(found),
            answered=bool(valid),
            errors=errors,
            number=self._num_asked,
        )
        trained = [numbers for numbers in found if numbers]  # others have only mixed
        metrics = MetricRecord({**means(trained), **room.edges.totals()})
        metrics["num_replies"], metrics["num_mixed"] = len(found), len(mixed)
        return None, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask all nodes that have not answered yet after this round."""
        del arrays
        _, post = self._started()
        if self.survey.round != server_round:
            self.survey = Survey(server_round)
        requests = {
            vertex: post.request(
                vertex,
                node,
                dict(config.items()) | {"server-round": server_round},
                EVALUATE,
            )
            for vertex, node in post.vertices(grid).items()
            if vertex not in self.survey.models
        }
        return post.sent(server_round, requests, EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Measure the nodes that have answered after this round."""
        room, post = self._started()
        valid, _ = post.match(server_round, replies, EVALUATE)
        for vertex, message in valid.items():
            reply = post.read(server_round, vertex, message)
            try:
                if reply is not None:
                    self.survey.add(room, vertex, reply, message)
            except CompressionError as error:
                post.leave_out(server_round, vertex, error)
        if not self.survey.models:
            return None
        return self.survey.metrics(room)

    def steps_due(self, vertex: int, round_: int) -> tuple[int, int]:
        """Give the number of the first local step to do in a round, and how many."""
        period = self.train_periods[vertex]
        first, end = (-(-k // period) for k in (self._trained[vertex], round_))
        return first, end - first

    def attempts_after(self, round_: int) -> int:
        """Say how often nodes are asked for their models after a round."""
        if round_ == self._last_round:
            return _LAST_ATTEMPTS
        return int(bool(self.evaluate_every) and round_ % self.evaluate_every == 0)

    def _fresh_patience(self) -> Patience:
        for_each, least = _MAX_EMPTY_REQUESTS
        most = max(for_each * self.topology.num_nodes, least)
        return Patience(self.name, most, "requests")

    def _started(self) -> tuple[MailRoom, Post]:
        if self._parts is None:
            msg = f"{self.name}: its start() was not called"
            raise ProtocolError(msg)
        return self._parts

"""The mail room: neighbours' messages meet here, since Flower has no direct links.

It serves no average. It holds the public copy of every vertex (and can read it), fixes
for each round the edges of which it has both ends' messages, and owes both ends the
flow. A flow is delivered exactly once, late if need be: the mean of all models plus
the flows that are not in them yet stays, whatever messages are lost.

Every message of a vertex has a random id, as in the protocol of memories (`envelope`):

==========  ========================================================================
request     ``applied``: id of the message whose content is in the public copy;
            ``epoch``: id of the flow that the parcel carries
reply       ``base``: id of the public copy that the vertex knows of, 0 if it has lost
            its model; ``epoch``: id of the last flow that it has taken in
==========  ========================================================================

A flow is kept, and sent again, until a message of the vertex that contains it has
arrived. So a vertex that has lost its model restarts from its public copy and the flow,
whatever it had taken in; what it has trained since is lost.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..envelope import Reply, Request, Ticket
from ..errors import ProtocolError, WireError
from ..model import ModelCodec, layout_of
from . import node
from .edge_bytes import EdgeBytes
from .flows import Flows
from .parcel import Parcel
from .rows import Rows

#: Texts in requests: vertices send their models, or differences to public copies.
EXACT, TRACKED = "consensus", "choco"
#: Largest entry of a public copy: what flows is finite then.
LARGEST = 2.0**63


def new_id() -> int:
    """Draw 64 random bits, never 0."""
    return secrets.randbits(64) or 1


@dataclass
class Box:
    """What is kept of one vertex, besides its public copy.

    Attributes
    ----------
    applied : int
        Id of the message that made the public copy what it is.
    known : bool
        The vertex has said that its model goes with that.
    ticket : Ticket, optional
        Of the request that is open.
    flow_id : int
        Of the last flow; 0 before the first.
    flow : Tensor, optional
        What is owed, float64, shape (d,), until it is certainly delivered.
    """

    applied: int
    known: bool = False
    ticket: Ticket | None = None
    flow_id: int = 0
    flow: Tensor | None = None


class MailRoom:
    """All public copies and flows of one training.

    Parameters
    ----------
    flows : Flows
        How edges mix.
    initial : Mapping[str, Tensor]
        The model that all vertices start from.
    patterns : sequence of str
        Arrays that travel exactly, besides statistics.

    Attributes
    ----------
    rows : Rows
        Of the model.
    public : Tensor
        The public copies, shape (n, d).
    boxes : list of Box
        By vertex.
    edges : EdgeBytes
        What went over each edge.
    held : dict of int to int
        Vertices whose message of this round has arrived, and its bytes.
    """

    def __init__(
        self,
        flows: Flows,
        initial: Mapping[str, Tensor],
        patterns: Sequence[str] = (),
    ) -> None:
        self.flows = flows
        self.patterns = tuple(patterns)
        self.rows = Rows(layout_of(initial), patterns)
        self.fid = secrets.token_bytes(16)
        n, first = flows.topology.num_nodes, new_id()
        self.public = self.rows.join(initial).repeat(n, 1)
        self.boxes = [Box(first) for _ in range(n)]
        self.edges = EdgeBytes(flows.topology)
        self.held: dict[int, int] = {}
        self._others = {name: initial[name] for name in self.rows.others}
        self._start = time.time_ns()
        self._seq = 0

    def write(
        self,
        vertex: int,
        purpose: int,
        *,
        deadline: float,
        codec: str = "",
        draws: int = 0,
    ) -> tuple[Request, Parcel]:
        """Open a request to a vertex, closing its older one.

        Parameters
        ----------
        vertex : int
            To whom.
        purpose : int
            Of `envelope.Request`.
        deadline : float
            Seconds since 1970.
        codec : str
            For the vertex's message; empty if it is to send none.
        draws : int
            For its random numbers.
        """
        box = self.boxes[vertex]
        self._seq += 1
        box.ticket = (self._start, self._seq)
        request = Request(
            purpose=purpose,
            fid=self.fid,
            epoch=box.flow_id,
            ticket=box.ticket,
            applied=box.applied,
            draws=draws,
            scale=1.0,
            deadline=deadline,
            codec=codec,
            feedback=TRACKED if self.flows.tracks else EXACT,
            exact=self.patterns,
        )
        flow = b""
        if box.flow is not None:
            flow = node.encode_exactly(self.rows.cut(box.flow))
        model = b"" if box.known else node.encode_exactly(self._copy(vertex))
        return request, Parcel(self.rows.layout, flow, model)

    def claim(self, vertex: int, data: bytes) -> Reply | None:
        """Accept a reply to the open request, once, and close the request.

        Returns
        -------
        Reply or None
            None if the vertex has lost its model; the next request brings it back.

        Raises
        ------
        WireError, ProtocolError
            If it is not an answer to that request.
        """
        reply, box = Reply.unpack(data), self.boxes[vertex]
        if (reply.fid, reply.ticket) != (self.fid, box.ticket):
            msg = (
                f"vertex {vertex}: expected an answer to request {box.ticket}, found "
                f"one to {reply.ticket}; it came late or twice"
            )
            raise ProtocolError(msg)
        box.ticket = None
        box.known = reply.base == box.applied
        return reply if box.known else None

    def enter(self, vertex: int, reply: Reply) -> None:
        """Let a vertex's message into its public copy, and hold it for this round.

        Raises
        ------
        WireError, ProtocolError
            If it is not a message of this model, lacks the flow that it was sent, or
            makes the public copy one that cannot be mixed.
        """
        box = self.boxes[vertex]
        if box.flow is not None and reply.epoch != box.flow_id:
            msg = (
                f"vertex {vertex}: expected a model with flow {box.flow_id}, found "
                f"flow {reply.epoch}; both ends need the same version of fl-lowrank"
            )
            raise ProtocolError(msg)
        parts = ModelCodec.decode(reply.lossy, self.rows.parameters)
        if self.flows.tracks:  # added in the dtypes in which the vertex adds
            known = self._copy(vertex)
            parts = {name: known[name] + x for name, x in parts.items()}
        if self.rows.statistics:
            parts |= ModelCodec.decode(reply.exact, self.rows.statistics)
        elif reply.exact:
            msg = f"vertex {vertex}: {len(reply.exact)} bytes that nobody has asked for"
            raise WireError(msg)
        row = self.rows.join(parts)
        if not bool((row.abs() <= LARGEST).all()):
            msg = (
                f"vertex {vertex}: expected a public copy of numbers up to "
                f"{LARGEST:.0e}, found NaN, infinite or larger ones; it has diverged, "
                "lower its learning rate"
            )
            raise WireError(msg)
        self.public[vertex] = row
        box.applied, box.flow = reply.turn, None
        self.held[vertex] = len(reply.lossy) + len(reply.exact)

    def mix(self, edges: Tensor) -> Tensor:
        """Mix along those edges of which both ends' messages are held; ends the round.

        Parameters
        ----------
        edges : Tensor
            Positions in ``topology.edges`` in the order in which they mix, int64.

        Returns
        -------
        Tensor
            Those that did.
        """
        topology = self.flows.topology
        for vertex, size in self.held.items():
            # A public copy must be known to all neighbours, also where an edge rests.
            every = torch.arange(len(topology.edges))
            self.edges.add(vertex, size, every if self.flows.tracks else edges)
        here = torch.zeros(topology.num_nodes, dtype=torch.bool)
        here[list(self.held)] = True
        first, second = (ends[edges] for ends in topology.ends())
        mixing = edges[here[first] & here[second]]
        if len(mixing):
            flows = self.flows.of(self.public, self.rows.num_parameters, mixing)
            for vertex in topology.vertices_at(mixing).tolist():
                box = self.boxes[vertex]
                box.flow_id, box.flow = new_id(), flows[vertex].clone()
        self.held = {}
        return mixing

    def model(self, reply: Reply) -> dict[str, Tensor]:
        """Read the whole model of a vertex out of a reply that carries it."""
        return ModelCodec.decode(reply.lossy, self.rows.layout)

    def _copy(self, vertex: int) -> dict[str, Tensor]:
        """Give the public copy of a vertex, and integers as they were first."""
        cut = self.rows.cut(self.public[vertex])
        cut = {n: x.to(self.rows.whole[n].dtype) for n, x in cut.items()}
        return cut | self._others

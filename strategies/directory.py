"""Who is connected, by names that last.

Node ids of Flower are new in each simulated run and after an unauthenticated restart.
Memories, sampling and random streams therefore go by a client key, which the client's
mod tells when asked: its ``partition-id``, or its node id where it has none.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from logging import INFO, WARNING
from typing import TypeAlias

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common import log
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

import fl_lowrank
from fl_lowrank.envelope import HELLO, REQUEST_KEY, Request
from fl_lowrank.errors import ProtocolError

#: A node that did not introduce itself is asked again after so long, then after twice
#: as long, and so on.
RETRY_SECONDS = 30.0
_RETRY_TIMEOUT = 30.0  # of those askings, while known nodes wait
_MAX_KEY = 128
#: What Flower answers for a node that is as good as silent.
_AWAY = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)

#: Client key, and version of fl-lowrank.
Introduction: TypeAlias = tuple[str, str]


class Directory:
    """Node ids and client keys of the connected nodes.

    Parameters
    ----------
    who, mod : str
        The strategy and the mod that it needs, for messages to the user.
    key : str
        Of the mod's requests in a message's config.
    """

    def __init__(
        self,
        who: str = "Compressed",
        mod: str = "CompressionMod",
        key: str = REQUEST_KEY,
    ) -> None:
        self._who = who
        self._mod = mod
        self._key = key
        self._keys: dict[int, str] = {}
        self._asked: dict[int, float] = {}  # when the last asking ended
        self._tries: Counter[int] = Counter()

    def key(self, node_id: int) -> str:
        """Client key of a node; made of its id if it has not introduced itself."""
        return self._keys.get(node_id, f"node-{node_id}")

    @staticmethod
    def order(key: str) -> list[tuple[int, str]]:
        """Sort key of client keys that puts partition-2 before partition-10."""
        parts = re.findall(r"\d+|\D+", key)
        return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]

    def refresh(self, grid: Grid, fid: bytes, timeout: float) -> list[int]:
        """Ask new nodes who they are; give all known ones, ordered by client key.

        Raises
        ------
        ProtocolError
            If nodes are connected but none of them has ever introduced itself, and some
            answer with something else. Those that are silent may be dead, or starting.
        """
        connected = list(grid.get_node_ids())
        self._give_back(connected)
        new = [n for n in connected if n not in self._keys and self._may_ask(n)]
        errors: list[str] = []
        if new:
            if self._keys and all(self._tries[node] for node in new):
                timeout = min(timeout, _RETRY_TIMEOUT)
            told, errors = _ask(grid, new, fid, timeout, self._key)
            self._asked |= dict.fromkeys(new, time.monotonic())
            self._tries.update(new)
            claimed = {key for key, _ in told.values()}
            rivals = [n for n in connected if self._keys.get(n) in claimed]
            if rivals:
                self._keep_living(grid, rivals, fid, timeout)
            self._learn(told, set(connected))
            for error in errors:
                log(WARNING, "%s: %s", self._who, error)
        known = [n for n in connected if n in self._keys]
        if new and not self._keys:  # which keep those that are away
            why = errors[0] if errors else f"no answer within {timeout:.0f} s"
            msg = (
                f"{self._who}: none of {len(connected)} nodes introduced itself "
                f"({why}); is {self._mod}() the first of the ClientApp's mods?"
            )
            if errors:
                raise ProtocolError(msg)
            log(WARNING, msg)
        return sorted(known, key=lambda n: self.order(self._keys[n]))

    def _may_ask(self, node: int) -> bool:
        """Whether a node that is not known has not been asked for long enough."""
        pause = RETRY_SECONDS * 2.0 ** (self._tries[node] - 1)
        return time.monotonic() - self._asked.get(node, -math.inf) > pause

    def _give_back(self, connected: Sequence[int]) -> None:
        """Forget the makeshift keys of nodes whose rivals have gone.

        Asked again, they get the key that they claim.
        """
        held = {self._keys[n] for n in connected if n in self._keys}
        for node in connected:
            key, mark, _ = self._keys.get(node, "").rpartition(f"@{node}")
            if mark and key not in held:
                del self._keys[node], self._asked[node], self._tries[node]

    def _keep_living(
        self, grid: Grid, rivals: Sequence[int], fid: bytes, timeout: float
    ) -> None:
        """Forget those nodes, whose keys newcomers claim, that do not answer any more.

        A killed SuperNode counts as connected for a minute, while it may be back
        already under a new id.
        """
        alive, _ = _ask(grid, rivals, fid, timeout, self._key)
        self._asked |= dict.fromkeys(rivals, time.monotonic())
        for node in set(rivals) - alive.keys():
            del self._keys[node]

    def _learn(self, told: Mapping[int, Introduction], present: Set[int]) -> None:
        """Note the keys that nodes have told."""
        taken = {key: n for n, key in self._keys.items() if n in present}
        for node, (key, version) in told.items():
            if taken.setdefault(key, node) != node:
                log(WARNING, "%s: two nodes call themselves %s", self._who, key)
                key = f"{key}@{node}"
            # Its earlier node has gone; should that come back, it is asked anew.
            self._keys = {n: k for n, k in self._keys.items() if k != key}
            if version != fl_lowrank.__version__:
                text = "%s: node %s runs fl-lowrank %s"
                log(WARNING, text, self._who, node, version)
            self._keys[node] = key
        log(INFO, "%s: %s nodes introduced themselves", self._who, len(self._keys))


def _ask(
    grid: Grid, nodes: Sequence[int], fid: bytes, timeout: float, key: str
) -> tuple[dict[int, Introduction], list[str]]:
    """Ask nodes who they are; give what they say, by node, and what others answer."""
    hellos = _hellos(nodes, fid, timeout, key)
    replies = list(grid.send_and_receive(hellos, timeout=timeout))
    asked = {m.metadata.message_id: m.metadata.dst_node_id for m in hellos}
    answers = {
        asked[request]: reply
        for reply in replies
        if (request := reply.metadata.reply_to_message_id) in asked
    }
    told: dict[int, Introduction] = {}
    errors = []
    for node, reply in sorted(answers.items()):
        if reply.has_error():
            if reply.error.code not in _AWAY:
                errors.append(f"node {node}: {reply.error.reason}")
        elif (introduction := _introduction(reply)) is None:
            errors.append(f"node {node}: its reply is not an introduction")
        else:
            told[node] = introduction
    return told, errors


def _hellos(
    nodes: Iterable[int], fid: bytes, timeout: float, key: str
) -> list[Message]:
    deadline = time.time() + timeout
    request = Request(HELLO, fid, 0, (0, 0), 0, 0, 1.0, deadline).pack()
    messages = []
    for node in nodes:
        content = RecordDict({key: ConfigRecord({key: request})})
        messages.append(Message(content, node, MessageType.TRAIN, ttl=timeout))
    return messages


def _introduction(reply: Message) -> Introduction | None:
    record = reply.content.config_records.get(REQUEST_KEY, ConfigRecord())
    key, version = record.get("client-key"), record.get("version")
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY:
        return None
    # What cannot be printed would break lines of the log.
    told = str(version)[:_MAX_KEY]
    return (key, told if told.isprintable() else "?") if key.isprintable() else None

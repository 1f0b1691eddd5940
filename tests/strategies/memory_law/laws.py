"""The laws that hold between rounds and after quiet ones."""

from __future__ import annotations

import numpy as np

from strategies.turns import Book

from .oracle import Oracle
from .shadow import Vector
from .verdict import SERVER, TOLERANCE, flat


def check_round(oracle: Oracle, book: Book) -> None:
    """Compare all memories with their shadows, and the server's book with its."""
    for client in oracle.node_ids:
        oracle.end_call(client)
        oracle.compare(client)
        if not oracle.has_share:
            _check_error(oracle, client)
    members = {c: m for c, m in book.members.items() if m.applied}
    applied = {c: m.applied for c, m in members.items()}
    if applied != oracle.last_applied:
        oracle.verdict.breach("ids", f"applied {applied}, not {oracle.last_applied}")
    weights = {c: m.num_examples for c, m in members.items()}
    if weights != oracle.num_examples:
        text = f"weights {weights}, not {oracle.num_examples}"
        oracle.verdict.breach("sum", text)
    if oracle.has_share:
        wanted = sum(oracle.shares.values(), oracle.zero)
        found = flat(book.total, oracle.zero)
        oracle.verdict.close(SERVER, "sum", "its sum of memories", found, wanted)


def _check_error(oracle: Oracle, client: str) -> None:
    """Sum of updates = applied + error + what was given up with a cause."""
    _, memory, _ = oracle.actual(client)
    pending = oracle.shadows[client].pending
    if pending is not None and pending.applied:
        memory = memory - pending.sent
    wanted = oracle.books[client].error
    oracle.verdict.close(client, "sum", "what is left of updates", memory, wanted)


def check_step(oracle: Oracle, before: Vector, after: Vector, scale: float) -> None:
    """Compare the model's move in a round of FedAvg with the mean update."""
    distance = np.abs(after - before - scale * oracle.step).max()
    if distance > TOLERANCE * max(1.0, np.abs(before).max()):
        oracle.verdict.breach("step", f"the model's is off by {distance:.2g}")
    oracle.step = oracle.zero


def check_agreement(oracle: Oracle, book: Book) -> None:
    """After quiet rounds over all nodes the two ends must be one.

    Straight from the bytes in the Contexts, without the shadows.
    """
    total = oracle.zero
    for client in oracle.node_ids:
        number, memory, base = oracle.actual(client)
        applied = book.members[client].applied
        if number:
            oracle.verdict.breach("agreement", f"{client}: still pending {number:x}")
        if base != applied:
            text = f"{client}: holds turn {base:x}, the server {applied:x}"
            oracle.verdict.breach("agreement", text)
        total = total + memory
    if oracle.has_share:
        found = flat(book.total, oracle.zero)
        oracle.verdict.close(SERVER, "agreement", "sum of memories", found, total)

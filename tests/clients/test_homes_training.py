"""Trainings whose nodes restart before every message: what is in files survives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod, ContextHome, FileHome
from clients.homes import Home, choice
from clients.homes.scratch import Scratch
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import NUM_NODES, distance, logged, quadratic_app
from tests.strategies.federation import train as run

NUM_ROUNDS = 12
UPLINK = "topk(fraction=0.1)"


def train(
    home: Home, feedback: str, *, restarts: bool, lose_in_round: int = 0
) -> tuple[ArrayRecord, LoopbackGrid, list[str]]:
    """Give the final arrays, the grid, and what was logged."""
    app = quadratic_app([CompressionMod(memory=home)])
    grid = LoopbackGrid(app, NUM_NODES)
    if restarts:
        # A restarted SuperNode has nothing in its Context.
        grid.on_request = lambda message: grid.forget(message.metadata.dst_node_id)

    def evaluate(round_: int, arrays: ArrayRecord) -> None:
        if round_ != lose_in_round:
            return
        for node_id in grid.node_ids:
            grid.forget(node_id)
        if isinstance(home, FileHome):
            for path in home.folder.glob("*/*"):
                path.unlink()

    strategy = Compressed(FedAvg(), UPLINK, feedback)
    with logged() as lines:
        result = run(
            strategy,
            grid=grid,
            num_rounds=NUM_ROUNDS,
            evaluate_fn=evaluate if lose_in_round else None,
        )
    return result.arrays, grid, lines


@pytest.mark.parametrize("feedback", ["ef", "ef21", "ef(precision=bfloat16)"])
def test_files_survive_restarts_and_the_context_does_not(
    tmp_path: Path, feedback: str
) -> None:
    usual, grid, _ = train(ContextHome(), feedback, restarts=False)
    assert all(c.state for c in grid.contexts.values())
    on_disk, grid, lines = train(FileHome(tmp_path), feedback, restarts=True)
    assert distance(usual, on_disk) == 0.0
    assert not any(c.state for c in grid.contexts.values())
    assert not [line for line in lines if "lost" in line]
    assert len(list(tmp_path.glob("*.memory/*.full"))) == NUM_NODES
    in_context, _, _ = train(ContextHome(), feedback, restarts=True)
    assert distance(usual, in_context) > 1e-3


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
def test_deleted_files_are_a_lost_memory_like_any_other(
    tmp_path: Path, feedback: str
) -> None:
    usual, _, _ = train(ContextHome(), feedback, restarts=False)
    in_context, _, told = train(
        ContextHome(), feedback, restarts=False, lose_in_round=6
    )
    on_disk, _, lines = train(
        FileHome(tmp_path), feedback, restarts=True, lose_in_round=6
    )
    assert distance(in_context, on_disk) == 0.0
    assert distance(usual, on_disk) > 1e-3
    assert lines == told
    assert any("its memory is lost" in line for line in lines) == (feedback == "ef21")


def test_large_memories_of_simulations_do_not_stay_in_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Scratch(tmp_path)
    monkeypatch.setattr(choice, "SCRATCH", held)
    monkeypatch.setattr(choice, "LARGE_BYTES", 100)
    app = quadratic_app([CompressionMod()])
    grid = LoopbackGrid(app, NUM_NODES)
    sizes: list[int] = []
    grid.on_reply = lambda reply: sizes.append(len(list(tmp_path.glob("*/*/*.full"))))
    result = run(Compressed(FedAvg(), UPLINK, "ef"), grid=grid, num_rounds=3)
    usual = run(Compressed(FedAvg(), UPLINK, "ef"), num_rounds=3)
    assert distance(usual.arrays, result.arrays) == 0.0
    assert sizes[-1] == NUM_NODES
    assert not any(c.state for c in grid.contexts.values())
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_short_memories_are_short_on_disk(tmp_path: Path) -> None:
    sizes = []
    for feedback in ("ef", "ef(precision=float16)"):
        home = FileHome(tmp_path / feedback.replace("=", "-"))
        app = quadratic_app([CompressionMod(memory=home)])
        grid = LoopbackGrid(app, NUM_NODES)
        run(Compressed(FedAvg(), UPLINK, feedback), grid=grid)
        context = grid.contexts[grid.node_ids[0]]
        (path,) = home.path(context, bytes(16)).parent.glob("*.full")
        with home.open(context, bytes.fromhex(path.stem)) as slot:
            assert slot.memory is not None
            (w,) = slot.memory.tensors.values()
            sizes.append(w.numel() * w.element_size())
            assert bool(torch.isfinite(w).all())
    assert sizes[0] == 2 * sizes[1]

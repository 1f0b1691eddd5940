"""Decentralised training through Flower has the numbers of the one in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from rich.console import Console

from simulations.client_app import app
from simulations.config import Settings, default_run_config
from simulations.decentralised.driver import Training
from simulations.decentralised.report import write_report
from simulations.decentralised.server import build_strategy
from simulations.errors import SimulationError
from simulations.loopback import LoopbackGrid
from simulations.results import Round, RunFolder
from simulations.runner.superlink import LocalSuperLink
from simulations.server_app import run_federated
from tests.simulations.runs import (
    ROUNDED,
    decentralised_in_process,
    decentralised_on_ray,
)

COMMON = "--train-samples 240 --batch-size 8 --device cpu"
TOPK = "--compressor 'topk(fraction=0.2) >> natural()' --gamma 0.3"
#: Settings; models are equal to the last bit.
CASES = {
    "consensus": "--model logistic --max-steps 7",
    "network": "--model digits-cnn-bn --max-steps 4",
    "seldom": "--model logistic --mix-every 3 --max-steps 8",
    "unequal": "--model logistic --train-periods 1,1,2,2 --mix-periods 1,1,2,2 "
    "--max-steps 7",
    "gossip": "--model logistic --method gossip --max-steps 5",
    "matching": "--model digits-cnn-bn --method gossip --gossip-draw matching "
    "--max-steps 3",
    "compressed": f"--model logistic {TOPK} --max-steps 6",
    "in float64": f"--model digits-cnn-bn --precision float64 {TOPK} --max-steps 3",
}


def settings_for(text: str, **changes: Any) -> Settings:
    run_config = {"decentralised": f"{COMMON} {text}", **changes}
    return Settings.from_run_config(default_run_config() | run_config)


def in_one_process(text: str) -> tuple[Training, Round]:
    training = decentralised_in_process(f"{COMMON} {text}")
    return training, training.measure()


@pytest.mark.parametrize("name", CASES)
def test_loopback_and_one_process_agree(name: str) -> None:
    text = CASES[name]
    alone, measured = in_one_process(text)
    settings = settings_for(text)
    strategy = build_strategy(Training(alone.settings))
    grid = LoopbackGrid(app, 4, run_config=settings.to_run_config())
    initial = Training(alone.settings).agents
    start = initial.parameters[0].clone()
    result = strategy.start(
        grid, ArrayRecord(initial.model.state_dict()), alone.total_steps
    )
    found = [strategy.room.rows.join(strategy.survey.models[i]) for i in range(4)]
    expected = torch.cat((alone.agents.parameters, alone.agents.statistics), dim=1)
    assert torch.equal(torch.stack(found), expected)
    moved = float((alone.agents.parameters - start).norm())
    assert moved > 1e-3 * float(alone.agents.parameters.norm())
    metrics = result.evaluate_metrics_clientapp[alone.total_steps]
    assert metrics["accuracy_agents"] == measured["accuracy_agents"]
    assert metrics["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    assert metrics["messages"] == measured["messages"]
    distance = metrics["consensus_distance"]
    assert distance == pytest.approx(measured["consensus_distance"], rel=1e-4)
    # Statistics of normalisation layers have a table of their own there.
    spare = 40 * measured["messages"] * bool(initial.statistics.shape[1])
    assert 0 <= metrics["bytes"] - measured["bytes"] <= spare


def test_a_run_writes_what_the_report_reads(tmp_path: Path) -> None:
    text = "--model logistic --topology complete:3 --epochs 2 --batch-size 40"
    settings = settings_for(text, out=str(tmp_path / "run" / "seed-0"))
    grid = LoopbackGrid(app, 3, run_config=settings.to_run_config())
    result = run_federated(grid, settings)
    _, measured = in_one_process(text)
    folder = RunFolder(tmp_path / "run" / "seed-0")
    rounds = folder.read_rounds()
    assert [entry["round"] for entry in rounds] == [1.0, 2.0]
    same = measured.keys() - ROUNDED
    assert {k: rounds[-1][k] for k in same} == {k: measured[k] for k in same}
    assert rounds[-1]["loss"] == pytest.approx(measured["loss"], rel=1e-4)
    assert list(result.evaluate_metrics_serverapp) == [2, 4]
    write_report(tmp_path, Console(quiet=True))
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits", "must name one run, found 8"),
        ("--speed 3", "cannot be read"),
        ("digits --only gossip-2 --topology knot:3", "unknown topology 'knot'"),
    ],
)
def test_a_wrong_text_is_refused(text: str, message: str) -> None:
    settings = settings_for(text)
    with pytest.raises(SimulationError, match=message):
        run_federated(LoopbackGrid(app, 4), settings)


@pytest.mark.timeout(600)
def test_so_does_flwr_run_on_ray(tmp_path: Path) -> None:
    text = f"{COMMON} --model digits-cnn --max-steps 3"
    with LocalSuperLink(tmp_path / "superlink.log") as link:
        (entry,) = decentralised_on_ray(link, text, 4, tmp_path)
    _, measured = in_one_process("--model digits-cnn --max-steps 3")
    same = measured.keys() - ROUNDED
    assert {k: entry[k] for k in same} == {k: measured[k] for k in same}
    assert entry["loss"] == pytest.approx(measured["loss"], rel=1e-4)

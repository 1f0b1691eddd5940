"""Real processes on the loopback: a SuperNode dies and comes back, another one dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.config import Settings, default_run_config
from simulations.data import load_dataset
from simulations.models import build_model
from tests.deployment import law
from tests.deployment.federation import Federation, make_app

CONFIG = {
    "train-samples": 300,
    "num-rounds": 4,
    "local-epochs": 1,
    "fraction-evaluate": 0.0,
    "evaluate-every": 4,
}


@pytest.mark.timeout(600)
def test_nodes_die_and_the_memory_law_holds(tmp_path: Path) -> None:
    app = make_app(tmp_path / "app")
    with Federation(tmp_path, num_nodes=3) as federation:
        returning, dying, _ = federation.nodes
        federation.start_nodes()
        federation.start_run(app, CONFIG)
        federation.wait_for_round(1)
        returning.stop_at("saved")
        dying.stop_at("trained")
        returning.wait_until_at("saved")
        returning.kill(for_good=False)
        dying.wait_until_at("trained")
        dying.kill(for_good=True)
        status = federation.wait_for_end()
        for n in federation.nodes:
            print(n.key, n.ids(), n.relay.up, n.relay.down)
    print(federation.said())
    assert status == "finished:completed", federation.said()
    left = law.Left(
        federation.checkpoint, {n.key: n.records_folder for n in federation.nodes}
    )
    settings = Settings.from_run_config(default_run_config() | CONFIG)
    data = load_dataset(settings.dataset, settings.train_samples)
    model = build_model(
        settings.model, data.sample_shape, data.num_classes, settings.seed
    )
    law.check(
        left,
        {n.key: n.memory_folder for n in federation.nodes},
        law.initial_model(model.state_dict()),
    )
    rounds = federation.results.read_rounds()
    print(rounds)

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from simulations.config import PROJECT_FOLDER, Settings, default_run_config
from simulations.errors import SimulationError


def test_defaults_are_complete_and_survive_the_round_trip() -> None:
    settings = Settings.from_run_config(default_run_config())
    assert settings.to_run_config() == default_run_config()


def test_every_key_is_documented() -> None:
    text = Settings.__doc__ or ""
    assert not [name for name in vars(_defaults()) if name not in text]


def test_pyproject_names_no_federation() -> None:
    # Flower would rewrite the file to move such a table elsewhere.
    app = tomllib.loads((PROJECT_FOLDER / "pyproject.toml").read_text("utf-8"))
    assert "federations" not in app["tool"]["flwr"]


def test_a_whole_number_will_do_for_a_real_one() -> None:
    settings = Settings.from_run_config(default_run_config() | {"lr": 1})
    assert settings.lr == 1.0
    assert isinstance(settings.lr, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": "fast"}, "lr must be float, found 'fast'"),
        ({"num-rounds": 2.5}, "num-rounds must be int, found 2.5"),
        ({"num-rounds": 0}, "num-rounds must be from 1"),
        ({"fraction-train": 1.5}, "fraction-train must be from 1e-09 to 1"),
        ({"lr": float("nan")}, "lr must be from"),
        ({"speed": 1}, r"unknown keys \['speed'\]"),
        ({"out": "runs"}, "out must be an absolute path"),
        ({"checkpoint": "run.ckpt"}, "checkpoint must be an absolute path"),
        ({"evict": "partition-1"}, "name the checkpoint too"),
        ({"evict-after": -1}, "evict-after must be from 0"),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        Settings.from_run_config(default_run_config() | change)


def test_the_step_falls_by_half_a_cosine() -> None:
    settings = dataclasses.replace(_defaults(), lr=0.2, lr_end_factor=0.5, num_rounds=5)
    steps = [settings.lr_in(r) for r in range(1, 6)]
    assert steps[0] == 0.2
    assert steps[2] == pytest.approx(0.15)
    assert steps[4] == pytest.approx(0.1)
    assert steps == sorted(steps, reverse=True)
    assert dataclasses.replace(settings, num_rounds=1).lr_in(1) == 0.2


def test_a_missing_key_is_named() -> None:
    config = default_run_config()
    del config["lr"]
    with pytest.raises(SimulationError, match=r"missing keys \['lr'\]"):
        Settings.from_run_config(config)


def _defaults() -> Settings:
    return Settings.from_run_config(default_run_config())

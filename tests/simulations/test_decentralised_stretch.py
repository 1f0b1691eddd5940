"""An epoch of every setting on Fashion-MNIST: ``flwr run`` equals the fast path.

``pytest -s -m slow`` on this file prints what both have found. On two idle cores the
tenths of the cycle take a quarter of an hour and those of the torus half an hour (``-k
"tenth and cycle"``); a whole epoch takes a quarter of an hour for each setting of the
cycle, and an hour for each of the torus.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.data.dataset import data_folder
from simulations.decentralised.experiments import FASHION
from simulations.runner.superlink import LocalSuperLink
from tests.simulations.runs import (
    ROUNDED,
    decentralised_in_process,
    decentralised_on_ray,
)

#: A tenth of the data: an epoch is 60 steps on the cycle and 28 on the torus.
TENTH = "--epochs 1 --train-samples 6000 --device cpu --seed 0"
#: All of it: 600 and 278 steps.
WHOLE = "--epochs 1 --device cpu --seed 0"
NUM_AGENTS = {"cycle": 4, "torus": 36}
NAMES = [name for name in FASHION if not name.endswith("-single")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(data_folder() is None, reason="needs FL_LOWRANK_DATA"),
]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSuperLink]:
    log = tmp_path_factory.mktemp("superlink") / "superlink.log"
    with LocalSuperLink(log) as found:
        yield found


@pytest.mark.parametrize("name", NAMES)
def test_a_tenth_of_an_epoch(name: str, link: LocalSuperLink, tmp_path: Path) -> None:
    compare(name, TENTH, link, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_epoch(name: str, link: LocalSuperLink, tmp_path: Path) -> None:
    compare(name, WHOLE, link, tmp_path)


def compare(name: str, common: str, link: LocalSuperLink, folder: Path) -> None:
    text = f"fashion --only {name} {common}"
    num_agents = NUM_AGENTS[name.partition("-")[0]]
    (found,) = decentralised_on_ray(link, text, num_agents, folder)
    expected = decentralised_in_process(text).measure()
    for key in ("accuracy", "accuracy_of_mean", "consensus_distance", "bytes"):
        print(f"{name}: {key} {found[key]:.6g} through Flower, {expected[key]:.6g}")
    # Sums over all agents, in another order.
    sums = {"accuracy", "accuracy_deviation"}
    for key in sums:
        assert found[key] == pytest.approx(expected[key], rel=1e-12)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    same = expected.keys() - sums - ROUNDED
    assert {k: found[k] for k in same} == {k: expected[k] for k in same}

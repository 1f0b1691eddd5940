"""Decentralised training: equivalences, the mean, bytes, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simulations.data import Dataset, load_dataset
from simulations.decentralised.driver import Training
from simulations.decentralised.rates import learning_rate
from simulations.decentralised.samples import Batches, share_out
from simulations.decentralised.settings import Settings
from simulations.errors import SimulationError
from simulations.models import MODELS


@dataclass(frozen=True)
class Tanh:
    """A network without kinks: rounding is not amplified."""

    needs_images = False

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        size = torch.Size(input_shape).numel()
        return nn.Sequential(
            nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, num_classes)
        )


@pytest.fixture(autouse=True)
def _with_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tanh", Tanh())


def settings(**changes: Any) -> Settings:
    common: Mapping[str, Any] = {
        "model": "logistic",
        "topology": "complete:4",
        "weights": "max_degree",
        "batch_size": 8,
        "momentum": 0.0,
        "lr": 0.1,
        "warmup_epochs": 0,
        "device": "cpu",
    }
    return Settings(**{**common, **changes})


class Union:
    """One model sees the batches of four agents together."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def draw(self, agent: int, number: int) -> Tensor:
        assert agent == 0
        return torch.cat([self.batches.draw(i, number) for i in range(4)])


def distance_to_one_model(many: Training, num_steps: int = 50) -> float:
    """Largest distance of an agent to one model with a batch four times as large."""
    given = many.settings
    one = replace(given, topology="complete:1", batch_size=4 * given.batch_size)
    alone = Training(replace(one, mix_every=1), many.data)
    alone.batches = Union(many.batches)  # type: ignore[assignment]
    start = alone.agents.parameters.clone()
    for _ in range(num_steps):
        many.step()
        alone.step()
    found = alone.agents.parameters
    assert float((found - start).norm()) > 0.02 * float(start.norm())  # it has moved
    return float((many.agents.parameters - found).norm(dim=1).max() / found.norm())


@pytest.mark.parametrize("model", ["logistic", "tanh"])
def test_a_complete_graph_is_one_model_with_a_large_batch(model: str) -> None:
    assert distance_to_one_model(Training(settings(model=model))) <= 1e-6


@pytest.mark.parametrize("model", ["logistic", "tanh"])
def test_mixing_every_second_step_is_not(model: str) -> None:
    """After the last mixing, at step 48 of 0 to 49, the agents went their own ways."""
    assert distance_to_one_model(Training(settings(model=model, mix_every=2))) > 1e-3


def images(num_samples: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num_samples) % 10
    centres = torch.randn(10, 1, 28, 28, generator=generator)
    x = centres[y] + torch.randn(num_samples, 1, 28, 28, generator=generator)
    return Dataset(x, y, x[:10], y[:10], 10)


@pytest.mark.slow
def test_so_it_is_for_a_convolutional_network_in_float64() -> None:
    many = Training(
        settings(model="cnn", precision="float64", batch_size=2, lr=0.02), images(400)
    )
    assert many.agents.parameters.shape == (4, 1_474_550)
    assert distance_to_one_model(many) <= 1e-6


ALGORITHMS: dict[str, dict[str, Any]] = {
    "consensus": {},
    "every third step": {"mix_every": 3},
    "unbalanced": {"train_periods": "1,1,2,2", "mix_periods": "1,1,2,2"},
    "gossip": {"method": "gossip", "gossip_edges": 4},
    "matching": {"method": "gossip", "gossip_draw": "matching"},
    "compressed": {"compressor": "flat(inner=randk(fraction=0.3))", "gamma": 0.2},
}


def drift(num_steps: int, changes: Mapping[str, Any], *, pulled: bool) -> float:
    """Move of the models' mean that no training made, over its norm.

    Training is SGD, or a fifth of the way to a target of each agent in every step.
    """
    training = Training(settings(topology="cycle:4", **changes))
    agents = training.agents
    start = agents.parameters.double()
    mean, before = start.mean(dim=0), start
    targets = agents.parameters + torch.randn(
        agents.parameters.shape, generator=torch.Generator().manual_seed(1)
    )
    train = agents.train

    def watched(batches: Any, lr: float) -> float:
        nonlocal mean
        loss = 0.0
        if pulled:
            for i, _, _ in batches:
                agents.parameters[i] -= 0.2 * (agents.parameters[i] - targets[i])
        else:
            loss = train(batches, lr)
        mean = mean + (agents.parameters.double() - before).mean(dim=0)
        return loss

    agents.train = watched  # type: ignore[method-assign]
    for _ in range(num_steps):
        before = agents.parameters.double()
        training.step()
    assert float((agents.parameters.std(dim=0)).max()) > 0
    assert float((mean - start[0]).norm()) > 0.1 * float(start[0].norm())
    return float((agents.parameters.double().mean(dim=0) - mean).norm() / mean.norm())


#: The models lack at most half a unit in their last places, after any number of steps.
_ROUNDED = 6e-8


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_mixing_does_not_move_the_mean(name: str, pulled: bool) -> None:
    steps = 100 if name == "compressed" else 300
    assert drift(steps, ALGORITHMS[name], pulled=pulled) < _ROUNDED


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_nor_do_ten_thousand_steps(name: str, pulled: bool) -> None:
    found = drift(10_000, ALGORITHMS[name], pulled=pulled)
    print(f"the mean has moved by {found:.2g} of its norm")
    assert found < _ROUNDED


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns(name: str) -> None:
    training = Training(settings(topology="cycle:4", lr=0.3, **ALGORITHMS[name]))
    for _ in range(60):
        training.step()
    found = training.measure()
    assert min(found["accuracy_agents"]) > 0.8
    assert found["accuracy_of_mean"] > 0.85
    assert 0 < found["consensus_distance"] < 0.5
    assert found["accuracy"] == pytest.approx(sum(found["accuracy_agents"]) / 4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_repeats(name: str) -> None:
    first, again = (
        Training(settings(topology="cycle:4", **ALGORITHMS[name])) for _ in range(2)
    )
    for training in (first, again):
        for _ in range(6):
            training.step()
    assert torch.equal(first.agents.parameters, again.agents.parameters)
    assert torch.equal(first.bytes, again.bytes)


def test_negative_weights_converge() -> None:
    """On a graph whose fastest weights have negative ones among them."""
    training = Training(
        settings(topology="random:12,26,22", weights="fastest", batch_size=4)
    )
    assert float(training.setup.mixing.weights.min()) < -0.1
    for _ in range(60):
        training.step()
    together = training.measure()
    assert together["accuracy"] > 0.85
    assert together["consensus_distance"] < 0.1


def test_a_step_equals_that_of_torch() -> None:
    """For both ways of training: together by vmap, and one after the other."""
    for model, steps in (("tanh", 5), ("digits-cnn", 3)):
        training = Training(settings(model=model, topology="complete:1", momentum=0.9))
        agents, data = training.agents, training.data
        oracle = MODELS[model].build(data.sample_shape, 10)
        values = torch.split(
            agents.parameters[0], [p.numel() for p in oracle.parameters()]
        )
        with torch.no_grad():
            for p, value in zip(oracle.parameters(), values, strict=True):
                p.copy_(value.view(p.shape))
        optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9)
        for number in range(steps):
            batch = training.batches.draw(0, number)
            optimizer.zero_grad()
            logits = oracle(data.train_x[batch])
            nn.functional.cross_entropy(logits, data.train_y[batch]).backward()
            optimizer.step()
            training.step()
        expected = torch.cat([p.detach().reshape(-1) for p in oracle.parameters()])
        torch.testing.assert_close(agents.parameters[0], expected, rtol=1e-4, atol=1e-6)


def test_bytes_are_those_of_the_messages() -> None:
    plain = Training(settings(topology="cycle:4", mix_every=2))
    packed = Training(
        settings(topology="cycle:4", compressor="topk(fraction=0.1)", gamma=0.2)
    )
    gossip = Training(settings(topology="cycle:4", method="gossip", gossip_edges=3))
    for training in (plain, packed, gossip):
        for _ in range(4):
            training.step()
    message = plain.setup.message_bytes
    assert 650 * 4 < message < 650 * 4 + 40
    assert plain.messages.tolist() == [4] * 4  # steps 0 and 2, both ways
    assert plain.bytes.tolist() == [4 * message] * 4
    assert packed.messages.tolist() == [8] * 4
    assert 0 < int(packed.bytes.max()) < 8 * message / 5
    assert int(gossip.messages.sum()) == 2 * 3 * 4
    assert torch.equal(gossip.bytes, gossip.messages * message)
    assert packed.measure()["bytes_uncompressed"] == 32 * message


def test_statistics_are_mixed_and_stay_positive() -> None:
    """Also with weights that would make variances negative."""
    training = Training(
        settings(
            model="digits-cnn-bn",
            topology="random:12,26,22",
            weights="fastest",
            batch_size=4,
        )
    )
    agents = training.agents
    training.step()
    first = agents.statistics.clone()
    assert first.shape == (12, 96)
    for _ in range(3):
        training.setup.method.mix(0, agents)
    spread = agents.statistics.std(dim=0).norm()
    assert float(spread) < 0.7 * float(first.std(dim=0).norm())
    torch.testing.assert_close(agents.statistics.mean(dim=0), first.mean(dim=0))
    variances = torch.cat(
        [agents.statistics[:, 16:32], agents.statistics[:, 64:]], dim=1
    )
    assert float(variances.min()) > 0


def test_statistics_can_be_recomputed() -> None:
    accuracies = {}
    for choice in ("mixed", "recomputed"):
        training = Training(
            settings(
                model="digits-cnn-bn",
                topology="cycle:4",
                statistics=choice,
                weights="metropolis",
            )
        )
        for _ in range(25):
            training.step()
        agents = training.agents
        accuracies[choice] = training.measure()["accuracy"]
    assert accuracies["mixed"] != accuracies["recomputed"] > 0.8
    x = training.data.train_x[:512]
    found = agents.recomputed(agents.parameters[0], x)
    convolved = agents.load(agents.parameters[0], found)[0](x)
    expected = convolved.mean(dim=(0, 2, 3))
    torch.testing.assert_close(found[:16], expected, rtol=1e-4, atol=1e-4)


def test_shares_are_disjoint_and_as_large_as_the_power() -> None:
    shares = share_out(1201, [1, 1, 2, 4], seed=3)
    assert sorted(torch.cat(shares).tolist()) == list(range(1201))
    assert [len(share) for share in shares] == [437, 436, 219, 109]
    again = share_out(1201, [1, 1, 2, 4], seed=3)
    assert all(torch.equal(a, b) for a, b in zip(shares, again, strict=True))
    training = Training(settings(topology="cycle:4", train_periods="1,2"))
    sizes = [len(share) for share in training.shares]
    # In an epoch every agent passes once over what it has.
    passes = [
        training.steps_per_epoch / period * 8 / size
        for period, size in zip(training.periods, sizes, strict=True)
    ]
    assert all(0.95 < passed <= 1.0 for passed in passes)


def test_batches_pass_over_all_samples_in_new_orders() -> None:
    batches = Batches([torch.arange(10), torch.arange(10, 25)], 4, seed=0)
    passes = torch.cat([batches.draw(0, number) for number in range(5)])
    assert sorted(passes[:10].tolist()) == sorted(passes[10:].tolist())
    assert passes[:10].tolist() != passes[10:].tolist()
    assert torch.equal(batches.draw(0, 1), passes[4:8])  # asked in any order
    assert batches.draw(1, 0).min() >= 10
    with pytest.raises(SimulationError, match="an agent has only 3 samples"):
        Batches([torch.arange(3)], 4, seed=0)


def test_learning_rate() -> None:
    given = settings(
        lr=0.2, lr_scaling="linear", warmup_epochs=2, epochs=10, milestones="0.5,0.75"
    )
    rates = [learning_rate(given, step, 10, 4) for step in range(100)]
    assert rates[0] == pytest.approx(0.8 / 20)
    assert rates[9] == pytest.approx(0.4)
    assert rates[19:50] == pytest.approx([0.8] * 31)
    assert rates[50:75] == pytest.approx([0.08] * 25)
    assert rates[75:] == pytest.approx([0.008] * 25)


def test_data_on_the_cpu_are_not_copied() -> None:
    data = load_dataset("digits", 0)
    assert Training(settings()).data.train_x.data_ptr() == data.train_x.data_ptr()


@pytest.mark.gpu
def test_a_gpu_does_the_same() -> None:
    for name, changes in ALGORITHMS.items():
        found = []
        for device in ("cpu", "cuda"):
            training = Training(settings(topology="cycle:4", device=device, **changes))
            for _ in range(20):
                training.step()
            found.append(training.agents.parameters.cpu())
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4, msg=name)

from __future__ import annotations

import copy

import torch
from torch.nn import functional

from simulations.data import load_dataset
from simulations.models import build_model
from simulations.training import evaluate, loss_gradient, train_locally


def test_steps_equal_those_of_torch() -> None:
    data = load_dataset("digits", 64)
    model = build_model("digits-cnn", data.sample_shape, 10, seed=0)
    oracle = copy.deepcopy(model)
    # One batch holds all samples, so their order does not matter.
    train_locally(
        model,
        data.train_x,
        data.train_y,
        lr=0.1,
        momentum=0.9,
        epochs=5,
        batch_size=64,
        seed=0,
    )
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(oracle(data.train_x), data.train_y).backward()
        optimizer.step()
    for found, expected in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_products_only() -> None:
    data = load_dataset("digits", 64)
    trained = {}
    for precision in ("float32", "bfloat16"):
        model = build_model("digits-cnn", data.sample_shape, 10, seed=0)
        start = copy.deepcopy(model.state_dict())
        train_locally(
            model,
            data.train_x,
            data.train_y,
            lr=0.1,
            momentum=0.9,
            epochs=5,
            batch_size=64,
            seed=0,
            precision=precision,
        )
        trained[precision] = {
            name: value - start[name] for name, value in model.state_dict().items()
        }
    for name, exact in trained["float32"].items():
        rough = trained["bfloat16"][name]
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


def test_gradients_equal_those_of_torch() -> None:
    data = load_dataset("digits", 64)
    model = build_model("digits-cnn-bn", data.sample_shape, 10, seed=0)
    oracle = copy.deepcopy(model).train()
    found = loss_gradient(model, data.train_x, data.train_y)
    functional.cross_entropy(oracle(data.train_x), data.train_y).backward()
    expected = {name: p.grad for name, p in oracle.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_training_learns_and_repeats() -> None:
    data = load_dataset("digits")
    accuracies = []
    for _ in range(2):
        model = build_model("digits-cnn", data.sample_shape, 10, seed=0)
        before = evaluate(model, data.test_x, data.test_y)
        train_locally(
            model,
            data.train_x,
            data.train_y,
            lr=0.1,
            momentum=0.0,
            epochs=3,
            batch_size=16,
            seed=7,
        )
        after = evaluate(model, data.test_x, data.test_y)
        assert after[1] > 0.85 > before[1]
        accuracies.append(after)
    assert accuracies[0] == accuracies[1]


def test_evaluation_in_batches_equals_evaluation_at_once() -> None:
    model = build_model("logistic", (3,), 2, seed=0)
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    loss, accuracy = evaluate(model, x, y)
    with torch.no_grad():
        logits = model(x)
    assert abs(loss - float(functional.cross_entropy(logits, y))) < 1e-5
    assert accuracy == int((logits.argmax(dim=1) == y).sum()) / 5000

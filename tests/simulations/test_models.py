from __future__ import annotations

import pytest
import torch

from simulations.errors import SimulationError
from simulations.models import MODELS, build_model


def _count(name: str, shape: tuple[int, ...], num_classes: int = 10) -> int:
    model = build_model(name, shape, num_classes, seed=0)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("logistic", (112,), 113 * 10),
        ("digits-cnn", (1, 8, 8), 55_018),
        ("digits-cnn-bn", (1, 8, 8), 55_114),
        ("cnn", (1, 28, 28), 1_474_550),
        ("mlp", (1, 28, 28), 101_770),
        ("resnet20", (3, 32, 32), 269_722),
        ("resnet18", (3, 32, 32), 11_173_962),
    ],
)
def test_number_of_parameters(name: str, shape: tuple[int, ...], count: int) -> None:
    assert _count(name, shape) == count


def test_the_default_model_has_enough_parameters_to_be_worth_compressing() -> None:
    assert _count("digits-cnn", (1, 8, 8)) >= 50_000


def test_batch_norm_brings_buffers() -> None:
    names = build_model("digits-cnn-bn", (1, 8, 8), 10, seed=0).state_dict()
    assert sum(name.endswith("running_var") for name in names) == 2
    assert sum(name.endswith("num_batches_tracked") for name in names) == 2


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_one_logit_for_each_class(name: str) -> None:
    model = build_model(name, (1, 12, 12), 7, seed=0)
    assert model(torch.zeros(3, 1, 12, 12)).shape == (3, 7)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_residual_networks_halve_the_image_in_each_stage(name: str) -> None:
    model = build_model(name, (3, 32, 32), 10, seed=0).eval()
    sizes, x = [], torch.zeros(1, 3, 32, 32)
    for layer in model:
        x = layer(x)
        sizes += [x.shape[-1]] if x.ndim == 4 and x.shape[-1] not in sizes else []
    assert sizes == {"resnet20": [32, 16, 8, 1], "resnet18": [32, 16, 8, 4, 1]}[name]


def test_a_shortcut_without_parameters_drops_pixels_and_pads_channels() -> None:
    """With the second normalisation at zero, a block is ReLU of its shortcut."""
    model = build_model("resnet20", (3, 32, 32), 10, seed=0).eval()
    block = next(b for b in model if getattr(b, "missing", 0))
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert y.shape == (2, 32, 4, 4)
    assert not y[:, 16:].any()


def test_weights_depend_on_the_seed_alone() -> None:
    first = build_model("digits-cnn", (1, 8, 8), 10, seed=1).state_dict()
    torch.rand(5)
    state = torch.get_rng_state()
    again = build_model("digits-cnn", (1, 8, 8), 10, seed=1).state_dict()
    other = build_model("digits-cnn", (1, 8, 8), 10, seed=2).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_unknown_model_names_the_choices() -> None:
    with pytest.raises(SimulationError, match=r"unknown model 'vgg'.*digits-cnn"):
        build_model("vgg", (1, 8, 8), 10, seed=0)


def test_convolutions_on_rows_are_refused() -> None:
    with pytest.raises(SimulationError, match=r"expects images.*\(112,\)"):
        build_model("cnn", (112,), 2, seed=0)

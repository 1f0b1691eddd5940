"""Compressed consensus: the mean stays, all agree, and gamma is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fl_lowrank import rng, topology
from fl_lowrank.consensus import Choco, contractive, due, tune_gamma
from fl_lowrank.errors import SettingError
from fl_lowrank.mixing import fastest, max_degree, metropolis
from fl_lowrank.model import ModelCodec
from fl_lowrank.types import Contractive, Exact
from fl_lowrank.wire import TensorLayout

LAYOUT = {
    "weight": TensorLayout((8, 10), torch.float32),
    "bias": TensorLayout((16,), torch.float32),
}
DIMENSION = 96
CYCLE, TRIANGLE = metropolis(topology.cycle(4)), max_degree(topology.cycle(3))
#: Of many kinds: contractive, unbiased, exact, with memory, by rules, joined.
COMPRESSORS = [
    "topk(fraction=0.2) >> natural()",
    "randk(fraction=0.3)",
    "sign()",
    "powersgd(rank=2)",
    "ecsq(nmse=0.1)",
    "dither_unbiased(nmse=0.1)",
    "flat(inner=randk(fraction=0.3))",
    "bias: f16(); *: qsgd(levels=4)",
    "identity()",
    "by_size(threshold=50, small=f16(), large=randk(fraction=0.3))",
]


def start(num_nodes: int, key: int = 0) -> Tensor:
    return rng.stream(40, key).normal(num_nodes, DIMENSION) + 1.0


@pytest.mark.parametrize("text", COMPRESSORS)
def test_all_agree_on_the_mean(text: str) -> None:
    codec = contractive(ModelCodec(text), LAYOUT)
    choco = Choco(TRIANGLE, codec, LAYOUT, 0.4)
    x = start(3)
    mean, distance = x.double().mean(dim=0), float((x - x.mean(dim=0)).norm())
    state = choco.init(torch.zeros_like(x))
    for k in range(60):
        x, state, sizes = choco.step(x, state, rng.stream(41, k))
        assert int(sizes.min()) > 0
    assert float((x - x.mean(dim=0)).norm()) < 0.1 * distance
    assert float((x.double().mean(dim=0) - mean).norm() / mean.norm()) < 1e-7


def drift(num_steps: int, text: str, *, pulled: bool) -> tuple[float, float]:
    """Moves of the mean of x and rest, and of x, with steps and edges that rest."""
    graph = topology.cycle(3)
    codec = contractive(ModelCodec(text), LAYOUT)
    choco = Choco(metropolis(graph), codec, LAYOUT, 0.2)
    x = start(1).repeat(3, 1)
    mean, state = x.double().mean(dim=0), choco.init(x)
    for k in range(num_steps):
        before = x
        if pulled:
            x = x - 0.01 * (x - start(3))
        else:
            x = x - 0.01 * rng.stream(42, k).normal(3, DIMENSION)
        mean += (x.double() - before.double()).mean(dim=0)
        active = due(graph, k, [1, 1, 2])
        x, state, _ = choco.step(x, state, rng.stream(43, k), active)
    assert float((x - x.mean(dim=0)).norm()) < float(mean.norm())
    alone, whole = x.double(), x.double() + state.rest
    moves = ((y.mean(dim=0) - mean).norm() / mean.norm() for y in (whole, alone))
    first, second = map(float, moves)
    return first, second


@pytest.mark.parametrize("pulled", [True, False])
@pytest.mark.parametrize(
    ("text", "num_steps"),
    [("flat(inner=randk(fraction=0.3))", 1000), ("topk(fraction=0.2)", 60)],
)
def test_the_mean_stays_with_local_steps(
    text: str, num_steps: int, pulled: bool
) -> None:
    whole, alone = drift(num_steps, text, pulled=pulled)
    assert whole < 1e-12
    assert alone < 6e-8  # half a unit in the last place


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pulled", [True, False])
@pytest.mark.parametrize(
    "text", ["flat(inner=randk(fraction=0.3))", "flat(inner=topk(fraction=0.2))"]
)
def test_the_mean_stays_for_ten_thousand_steps(text: str, pulled: bool) -> None:
    whole, alone = drift(10_000, text, pulled=pulled)
    print(f"the mean has moved by {whole:.2g} of its norm, that of x by {alone:.2g}")
    assert whole < 1e-12
    assert alone < 6e-8


def test_without_loss_it_is_plain_mixing() -> None:
    choco = Choco(CYCLE, ModelCodec("identity()"), LAYOUT, 1.0)
    x = y = start(4)
    state = choco.init(torch.zeros_like(x))
    update = {name: torch.zeros(t.shape) for name, t in LAYOUT.items()}
    message, _ = choco.codec.encode(update, {}, rng.stream(0))
    for k in range(5):
        sent = x
        x, state, sizes = choco.step(x, state, rng.stream(44, k))
        torch.testing.assert_close(state.public, sent, rtol=1e-5, atol=1e-6)
        assert sizes.tolist() == [len(message)] * 4
        y = CYCLE.step(y)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_vertices_whose_edges_rest_send_nothing_and_stay() -> None:
    choco = Choco(CYCLE, ModelCodec("topk(k=5)"), LAYOUT, 0.4)
    x = start(4)
    state = choco.init(torch.zeros_like(x))
    active = torch.tensor([True, False, False, False])  # the edge (0, 1)
    after, later, sizes = choco.step(x, state, rng.stream(45), active)
    assert sizes[:2].min() > 0
    assert sizes[2:].tolist() == [0, 0]
    assert torch.equal(after[2:], x[2:])
    assert torch.equal(later.public[2:], state.public[2:])
    assert not torch.equal(after[:2], x[:2])
    assert not state.public.any()


@pytest.mark.parametrize("text", COMPRESSORS)
def test_every_compressor_contracts_in_the_end(text: str) -> None:
    found = contractive(ModelCodec(text), LAYOUT).guarantee(LAYOUT)
    assert isinstance(found, Contractive | Exact)


def test_only_unbiased_compressors_are_shrunk() -> None:
    def shrunk(text: str) -> str:
        return str(contractive(ModelCodec(text), LAYOUT))

    assert shrunk("topk(k=5)") == "topk(k=5)"
    assert shrunk("randk(k=5)") == "shrunk(inner=randk(k=5))"
    assert shrunk("flat(inner=randk(k=5))") == "flat(inner=shrunk(inner=randk(k=5)))"
    rules = "bias: f16(); *: shrunk(inner=randk(k=5))"
    assert shrunk("bias: f16(); *: randk(k=5)") == rules
    assert shrunk(rules) == rules


def test_no_guarantee_is_refused() -> None:
    with pytest.raises(SettingError, match=r"'weight', found eden\(\) with NoG"):
        contractive(ModelCodec("eden(bits=1)"), LAYOUT)


def test_the_fastest_step_size_is_found() -> None:
    codec = contractive(ModelCodec("flat(inner=topk(fraction=0.2))"), LAYOUT)
    found = tune_gamma(CYCLE, codec, LAYOUT, rng.stream(46), steps=40)
    assert found.rates[found.gamma] == min(found.rates.values()) < 1
    assert set(found.rates) == {0.1, 0.2, 0.4, 0.8}
    # It holds for other vectors and more steps.
    choco = Choco(CYCLE, codec, LAYOUT, found.gamma)
    x = start(4)
    state, distance = choco.init(torch.zeros_like(x)), (x - x.mean(dim=0)).norm()
    for k in range(100):
        x, state, _ = choco.step(x, state, rng.stream(47, k))
    assert float((x - x.mean(dim=0)).norm()) < 0.05 * float(distance)


@pytest.mark.parametrize(
    ("graph", "compressor"),
    [
        (topology.cycle(4), "identity()"),
        (topology.cycle(4), "natural()"),
        (topology.complete(4), "identity()"),
        (topology.complete(4), "natural()"),
        (topology.complete(4), "qsgd(levels=255)"),
    ],
    ids=str,
)
def test_almost_without_loss_the_largest_step_size_is_the_fastest(
    graph: topology.Topology, compressor: str
) -> None:
    """Also where all that rounding leaves is reached long before the last step."""
    mixing = metropolis(graph)
    codec = contractive(ModelCodec(compressor), LAYOUT)
    found = tune_gamma(mixing, codec, LAYOUT, rng.stream(48))
    assert found.gamma == 0.8
    assert list(found.rates.values()) == sorted(found.rates.values(), reverse=True)
    if compressor == "identity()":
        # It leaves (1 - gamma) I + gamma W, whose second eigenvalue this is.
        for gamma, rate in found.rates.items():
            assert rate == pytest.approx(1 - gamma * mixing.spectral_gap, abs=0.01)


def test_an_unstable_step_size_is_told_from_a_stable_one() -> None:
    mixing = fastest(topology.star(4))
    codec = contractive(ModelCodec("topk(k=1)"), LAYOUT)
    found = tune_gamma(
        mixing, codec, LAYOUT, rng.stream(49), gammas=(0.01, 20.0), steps=20
    )
    assert found.gamma == 0.01
    assert found.rates[20.0] == math.inf
    with pytest.raises(SettingError, match="give a smaller gamma, or a compressor"):
        tune_gamma(mixing, codec, LAYOUT, rng.stream(49), gammas=(20.0,), steps=20)


def test_one_vertex_has_nobody_to_write_to() -> None:
    alone = Choco(max_degree(topology.complete(1)), ModelCodec("sign()"), LAYOUT, 0.4)
    x = start(1)
    after, _, sizes = alone.step(x, alone.init(x), rng.stream(50))
    assert torch.equal(after, x)
    assert sizes.tolist() == [0]

"""The importance operators: what the weights do, and what holds whatever they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import (
    F16,
    BySize,
    Exact,
    MdGreedy,
    MdGreedyWeighted,
    MdStochastic,
    MdWeightedGreedy,
    ModelCodec,
    Natural,
    NoGuarantee,
    Shrunk,
    Then,
    TopK,
    Unbiased,
)
from fl_lowrank.compressors.importance_operators import ByImportance
from fl_lowrank.compressors.importance_sampling import inclusion
from fl_lowrank.errors import InputError, SettingError
from fl_lowrank.model import layout_of
from fl_lowrank.types import Importance, State
from tests.fl_lowrank.compressing import error, send

GREEDY = (MdGreedy, MdGreedyWeighted, MdWeightedGreedy)
D = 400


def weighing(weights: Tensor, age: float = 1.0) -> State:
    return {"weights": weights, "age": torch.tensor([age])}


def normal(d: int = D, key: int = 0) -> Tensor:
    return fll.rng.stream(50, key).normal(d)


def drawn(compressor: ByImportance, x: Tensor, weights: Tensor, key: int) -> Tensor:
    """What is sent, dense, without the way through bytes."""
    payload, _ = compressor.encode(x, weighing(weights), fll.rng.stream(51, key))
    return fll.decode(payload)


def kinds_of_weights(d: int = D) -> dict[str, Tensor]:
    draws = normal(d, 9).abs()
    one_hot = torch.zeros(d)
    one_hot[d // 3] = 7.0
    few = torch.where(torch.arange(d) % 60 == 0, draws, 0.0)
    return {
        "ones": torch.ones(d),
        "spread": draws,
        "wild": draws**20,
        "one hot": one_hot,
        "few": few,
        "none": torch.zeros(d),
        "tiny": draws * 1e-42,
        "huge": draws / draws.max() * 3e38,
    }


@pytest.mark.parametrize("cls", GREEDY)
@pytest.mark.parametrize("k", [1, 7, D])
def test_with_equal_weights_the_greedy_ones_are_topk(
    cls: type[ByImportance], k: int
) -> None:
    ties = normal().mul(2).round()
    for x in (normal(), ties, torch.zeros(D), normal().to(torch.bfloat16)):
        for weights in (torch.ones(D), torch.full((D,), 0.3), torch.zeros(D)):
            state = weighing(weights)
            expected = send(TopK(k=k), x)
            assert torch.equal(send(cls(k=k), x, state=state), expected)


def test_each_operator_by_its_definition() -> None:
    """k = 2 of five, by hand."""
    x = torch.tensor([1.0, -8.0, 3.0, 0.5, 4.0])
    w = torch.tensor([3.0, 0.25, 1.0, 2.0, 0.5])
    state = weighing(w)

    def sent(text: str) -> list[float]:
        return send(text, x, state=state).tolist()

    assert sent("md_greedy(k=2)") == [1.0, 0.0, 0.0, 0.5, 0.0]
    # factors 3 and 2 over their mean 2.5
    expected = pytest.approx([1.2, 0.0, 0.0, 0.4, 0.0])
    assert sent("md_greedy_weighted(k=2)") == expected
    # |w x| = 3, 2, 3, 1, 2: weights 3 and 1, mean 2
    expected = pytest.approx([1.5, 0.0, 1.5, 0.0, 0.0])
    assert sent("md_weighted_greedy(k=2)") == expected
    expected = pytest.approx([1.25, 0.0, 2.25, 0.0, 0.0])
    assert sent("md_weighted_greedy(k=2, limit=1.25)") == expected
    # the slides: d / k = 2.5, weights over their sum 6.75
    assert sent('md_greedy(k=2, scale="paper")') == [2.5, 0.0, 0.0, 1.25, 0.0]
    factor = 2.5 / 6.75
    for name, positions in (("greedy_weighted", (0, 3)), ("weighted_greedy", (0, 2))):
        expected = [
            factor * float(w[i] * x[i]) if i in positions else 0.0 for i in range(5)
        ]
        found = sent(f'md_{name}(k=2, scale="paper")')
        assert found == pytest.approx(expected)
    y = send('md_stochastic(k=2, scale="paper")', x, state=state)
    assert int((y != 0).sum()) == 2
    assert torch.equal(y[y != 0], 2.5 * x[y != 0])


@pytest.mark.parametrize("k", [1, 20, 399])
def test_inclusion_probabilities(k: int) -> None:
    for name, weights in kinds_of_weights().items():
        wide = weights.to(torch.float64)
        if not wide.any():
            continue
        chances = inclusion(wide, k)
        assert float(chances.sum()) == pytest.approx(k, rel=1e-9), name
        assert float(chances.max()) <= 1.0
        assert float(chances.min()) > 0.0
        # in proportion where they are below 1 and the weights above 0
        free = (chances < 1.0) & (wide > 1e-6 * wide.sum())
        ratio = chances[free] / wide[free]
        if ratio.numel():
            assert float(ratio.max() / ratio.min()) < 1.001, name


@pytest.mark.parametrize("uniform", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("name", kinds_of_weights())
def test_zeta_holds_for_all_weights_exactly(uniform: float, name: str) -> None:
    """E|C(x)|^2 = sum x_i^2 / pi_i, where the values sent tell pi_i = x_i / C_i."""
    weights = kinds_of_weights()[name]
    k, seen = 40, torch.full((D,), math.nan, dtype=torch.float64)
    compressor = MdStochastic(k=k, uniform=uniform)
    x = torch.ones(D, dtype=torch.float64)
    for turn in range(80):
        y = send(compressor, x, turn, weighing(weights))
        assert int((y != 0).sum()) == k  # of a fixed size
        seen[y != 0] = 1.0 / y[y != 0]
    found = seen[~seen.isnan()]
    guarantee = compressor.guarantee((D,))
    assert guarantee == Unbiased(D / (k * uniform))
    assert float(found.min()) >= 1.0 / guarantee.zeta - 1e-12
    assert float(found.max()) <= 1.0
    if uniform == 1.0 or name in ("ones", "none"):
        torch.testing.assert_close(found, torch.full_like(found, k / D))


def test_zeta_is_attained_where_the_weights_mislead() -> None:
    """All weight on k entries, all of x on another: E|C|^2 = zeta |x|^2, nearly."""
    weights = torch.zeros(D)
    weights[:40] = 1.0
    x = torch.zeros(D, dtype=torch.float64)
    x[100] = 1.0
    compressor = MdStochastic(k=40, uniform=0.1)
    found = torch.stack([drawn(compressor, x, weights, i)[100] for i in range(400)])
    zeta = compressor.guarantee((D,)).zeta
    assert 0 < int((found != 0).sum()) < 20
    peak = found.max()
    assert float(peak) == pytest.approx(zeta, rel=1e-6)
    assert torch.equal(found[found != 0], peak.expand(int((found != 0).sum())))


@pytest.mark.parametrize("name", ["spread", "few", "wild"])
def test_unbiased_for_weights_that_differ(name: str) -> None:
    """Counts of 1000 samples against pi, at 5 sigma for each of 60 entries: 4e-5."""
    d, k, draws = 60, 12, 1000
    weights = kinds_of_weights(d)[name]
    x = torch.ones(d, dtype=torch.float64)
    compressor, count = MdStochastic(k=k, uniform=0.3), torch.zeros(d)
    chances = 0.7 * inclusion(weights.to(torch.float64), k) + 0.3 * k / d
    for i in range(draws):
        y = drawn(compressor, x, weights, i)
        count += y != 0
        torch.testing.assert_close(y[y != 0], 1.0 / chances[y != 0])
    sigma = torch.sqrt(draws * chances * (1.0 - chances))
    assert bool(((count - draws * chances).abs() <= 5.0 * sigma + 1e-6).all())


def test_neighbours_are_drawn_independently() -> None:
    """Systematic samples in the given order would never hold two neighbours.

    In random order a pair is in together k (k - 1) / (d (d - 1)) of the time: 24.75
    pairs of neighbours a sample. 50 samples, 5 sigma of a Poisson number.
    """
    x, both, draws = torch.ones(D), 0, 50
    for i in range(draws):
        y = drawn(MdStochastic(k=100), x, torch.ones(D), i)
        both += int(((y[1:] != 0) & (y[:-1] != 0)).sum())
    mean = (D - 1) * 100 * 99 / (D * (D - 1))
    assert abs(both / draws - mean) < 5 * math.sqrt(mean / draws)


def test_the_right_weights_lower_the_variance() -> None:
    """pi in proportion to |x| is the best; heavy tails, mean of 40 draws."""
    x = normal() ** 3
    right = weighing(x.abs())

    def mean_error(state: State) -> float:
        compressor = MdStochastic(k=40, uniform=0.1)
        return sum(error(x, send(compressor, x, i, state)) for i in range(40)) / 40

    assert mean_error(right) < 0.4 * mean_error(weighing(torch.ones(D)))


def test_successive_sampling_of_the_slides() -> None:
    """The first of two is i with probability w_i; 1500 samples, 5 sigma."""
    w = torch.tensor([0.6, 0.3, 0.1])
    pairs = torch.zeros(3)
    for i in range(1500):
        y = drawn(MdStochastic(k=2, scale="paper"), torch.ones(3), w, i)
        pairs[int((y == 0).nonzero())] += 1
    out = torch.zeros(3)
    for a in range(3):
        for b in range(3):
            if a != b:
                out[3 - a - b] += w[a] * w[b] / (1 - w[a])
    sigma = torch.sqrt(1500 * out * (1 - out))
    assert bool(((pairs - 1500 * out).abs() <= 5 * sigma).all())


def test_in_the_cube_of_the_thesis_enough_is_kept() -> None:
    """|C(x)|^2 >= k / (4 d) |x|^2 for weights in [1, 2]; k / d without the mean."""
    worst = math.inf
    for key in range(40):
        w = 1.0 + fll.rng.stream(52, key).uniform(D)
        if key % 3 == 0:
            w = w.round()
        x = (1.0 / w) * normal(D, key).sign() if key % 2 else normal(D, key)
        for k in (1, 8, 100):
            y = send(MdWeightedGreedy(k=k, limit=2.0), x.double(), state=weighing(w))
            kept = float(y.square().sum() / x.double().square().sum()) * D / k
            worst = min(worst, kept)
    assert 0.25 <= worst < 1.0


@pytest.mark.parametrize("cls", GREEDY)
def test_the_error_is_never_longer_than_x(cls: type[ByImportance]) -> None:
    """Error feedback would blow it up; without a limit it is much longer."""
    x = normal(key=3).double()
    worst = 0.0
    for weights in kinds_of_weights().values():
        state = weighing(weights)
        for k in (1, 20, 390):
            assert error(x, send(cls(k=k), x, state=state)) <= 1.0 + 1e-12
            if cls is not MdGreedy:
                raw = cls(k=k, limit=1e9)
                worst = max(worst, error(x, send(raw, x, state=state)))
    assert worst > 2.0 or cls is MdGreedy


def longest_memory(compressor: ByImportance, turns: int) -> float:
    """The same update again and again, with weights that favour the memory."""
    update, weights = normal(key=4), 0.05 + normal(key=5).abs() ** 3
    memory, longest = torch.zeros(D), 0.0
    for turn in range(turns):
        total = memory + update
        memory = total - drawn(compressor, total, weights * total.abs(), turn)
        longest = max(longest, float(memory.norm() / update.norm()))
    return longest


@pytest.mark.parametrize("cls", GREEDY)
def test_error_feedback_keeps_its_memory_small(cls: type[ByImportance]) -> None:
    """Less than half of all updates; without a limit it explodes."""
    assert longest_memory(cls(k=80), 60) < 30.0
    if cls is not MdGreedy:
        assert longest_memory(cls(k=80, limit=1e9), 10) > 1e6


@pytest.mark.parametrize("cls", [MdStochastic, *GREEDY])
def test_weights_change_nothing_but_what_they_should(cls: type[ByImportance]) -> None:
    """Only their ratios count, and the state keeps them as they are."""
    x = normal()
    for name, weights in kinds_of_weights().items():
        payload, after = cls(k=30).encode(x, weighing(weights), fll.rng.stream(1))
        assert torch.equal(after["weights"], weights), name
        assert payload.tensor("values").numel() <= 30
        if name in ("spread", "few"):
            y = send(cls(k=30), x, state=weighing(weights))
            z = send(cls(k=30), x, state=weighing(4.0 * weights))
            torch.testing.assert_close(y, z)


def test_weights_are_due_every_so_many_messages() -> None:
    compressor = MdWeightedGreedy(k=3, refresh=3)
    state, ages = compressor.init((D,)), []
    for turn in range(7):
        ages.append(float(state["age"]))
        _, state = compressor.encode(normal(), state, fll.rng.stream(turn))
    assert ages == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused(bad: float) -> None:
    weights = torch.ones(D)
    weights[3] = bad
    with pytest.raises(InputError, match="md_greedy: expected weights of at least 0"):
        MdGreedy(k=2).encode(normal(), weighing(weights), fll.rng.stream(0))


def test_entries_that_would_overflow_are_refused() -> None:
    weights = torch.full((D,), 1e-3)
    weights[:2] = 1.0
    x = torch.full((D,), 50000.0, dtype=torch.float16)
    assert float(
        send(MdWeightedGreedy(k=1), x, state=weighing(weights)).max()
    ) == float(x[0])
    with pytest.raises(InputError, match=r"do not fit torch\.float16"):
        send(MdWeightedGreedy(k=100), x, state=weighing(weights))


def test_guarantees() -> None:
    for cls in GREEDY:
        for scale in ("mean", "paper"):
            assert isinstance(cls(k=3, scale=scale).guarantee((9,)), NoGuarantee)
    assert isinstance(MdStochastic(k=3, scale="paper").guarantee((9,)), NoGuarantee)
    assert isinstance(MdGreedyWeighted(k=9).guarantee((9,)), NoGuarantee)
    assert MdGreedy(k=9).guarantee((9,)) == Exact()
    assert MdStochastic(k=9).guarantee((9,)) == Exact()
    assert Shrunk(MdStochastic(k=3)).guarantee((9,)).delta == pytest.approx(1 / 6)


def test_impossible_settings() -> None:
    for text in (
        "md_greedy(k=0)",
        "md_greedy(k=1, fraction=0.1)",
        'md_greedy(k=1, scale="slides")',
        "md_greedy(k=1, refresh=0)",
        "md_greedy(k=1, steps=1)",
        "md_greedy_weighted(k=1, limit=0.9)",
        "md_stochastic(k=1, uniform=0.0)",
        "md_stochastic(k=1, uniform=1.5)",
    ):
        with pytest.raises(SettingError, match=r"md_\w+: expected"):
            fll.parse(text)


def test_where_the_state_holds_weights() -> None:
    md = MdGreedy(k=2, steps=7)
    assert TopK(k=2).importance((9,)) is None
    assert md.importance((9,)) == Importance("weights", "age", 7)
    chain = Then(md, Natural())
    assert chain.importance((9,)) == Importance("outer.weights", "outer.age", 7)
    sampled = Shrunk(Then(MdStochastic(k=2), Natural()))
    assert sampled.importance((9,)) == Importance("outer.weights", "outer.age", 10)
    by_size = BySize(threshold=5, small=F16(), large=chain)
    assert by_size.importance((4,)) is None
    for compressor in (md, chain, sampled, by_size):
        found = compressor.importance((9,))
        assert found is not None
        state = compressor.init((9,))
        assert state[found.weights].shape == (9,)
        assert state[found.age].shape == (1,)


def test_a_model_says_which_tensors_need_weights() -> None:
    model = {"b": torch.zeros(8), "w/1": torch.zeros(60, 50), "v": torch.zeros(70, 3)}
    codec = ModelCodec("b: f16(); v: topk(k=3); *: md_greedy(k=9) >> natural()")
    layout = layout_of(model)
    found = codec.importance(layout)
    assert found == {"w/1": Importance("w/1/outer.weights", "w/1/outer.age", 10)}
    assert found["w/1"].weights in codec.init(layout)
    assert ModelCodec("topk(k=3)").importance(layout) == {}
    bare = ModelCodec("md_greedy(fraction=0.01)").importance(layout)
    assert set(bare) == {"w/1", "v"}  # small tensors travel at 16 bits


def test_weights_of_entries_that_are_no_more_the_models_are_refused() -> None:
    codec = ModelCodec("topk(k=50) >> md_greedy(k=9)")
    with pytest.raises(SettingError, match="of no use inside topk"):
        codec.importance(layout_of({"w": torch.zeros(300)}))


def test_the_weights_decide_through_a_whole_model() -> None:
    """What a client does: state in, other entries out."""
    codec = ModelCodec("*: md_greedy(k=2) >> natural()")
    update = {"w": torch.arange(1.0, 10.0)}
    layout = layout_of(update)
    state = codec.init(layout)
    weights = torch.ones(9)
    weights[[1, 3]] = 5.0
    state["w/outer.weights"] = weights
    data, after = codec.encode(update, state, fll.rng.stream(0))
    y = ModelCodec.decode(data, layout)["w"]
    assert y.nonzero().reshape(-1).tolist() == [1, 3]
    assert torch.equal(after["w/outer.weights"], weights)
    assert float(after["w/outer.age"]) == 1.0

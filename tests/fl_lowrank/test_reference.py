"""The model that both ends follow: one in all bits, from wherever a client stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fl_lowrank import broadcast, reference
from fl_lowrank.broadcast import Link
from fl_lowrank.errors import ProtocolError, WireError
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.reference import Chain, difference, fingerprint, followed, moved
from fl_lowrank.rng import stream
from fl_lowrank.updates import split_layout

CODECS = [
    "*: ecsq(nmse=0.1)",
    "*: dither(nmse=0.1)",
    "*: topk(fraction=0.2) >> natural()",
    "*: powersgd(rank=2)",
    "*: eden_contractive(bits=2)",
]


def model(seed: int) -> dict[str, Tensor]:
    """Draw a model of all dtypes that Flower carries, a scalar and an empty tensor."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(32, 64, generator=rng),
        "half": torch.randn(40, generator=rng).half(),
        "double": torch.randn(3, 5, generator=rng, dtype=torch.float64),
        "scalar": torch.randn((), generator=rng),
        "empty": torch.zeros(0, 4),
    }


LAYOUT, _ = split_layout(layout_of(model(0)))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        assert (value.dtype, value.shape) == (b[name].dtype, b[name].shape)
        assert torch.equal(value, b[name])


def encoded(codec: str, x: dict[str, Tensor], w: dict[str, Tensor], key: int) -> bytes:
    change = difference(x, w, LAYOUT)
    return ModelCodec(codec).encode(change, {}, stream(0, key))[0]


def a_chain(codec: str, num_moves: int) -> tuple[Chain, list[dict[str, Tensor]]]:
    """Follow models that stay near one another; also give all references."""
    chain = Chain(model(0))
    found = [chain.tensors]
    for i in range(num_moves):
        x = {k: v + (0.1 * model(i + 1)[k]).to(v.dtype) for k, v in model(0).items()}
        chain.move(encoded(codec, x, chain.tensors, i), LAYOUT)
        found.append(chain.tensors)
    return chain, found


@pytest.mark.parametrize("codec", CODECS)
def test_all_who_follow_hold_the_same_bits(codec: str) -> None:
    chain, references = a_chain(codec, 5)
    assert len({fingerprint(r) for r in references}) == 6
    for place, held in enumerate(references):
        for start in range(place + 1):  # older links than needed do no harm
            links = chain.links[start:]
            got = followed(held, fingerprint(held), links, chain.end, LAYOUT)
            assert_same(got, chain.tensors)


def test_the_distance_to_a_model_that_stands_still_shrinks_to_nothing() -> None:
    x, chain = model(1), Chain(model(0))
    for i in range(30):
        chain.move(encoded("*: natural()", x, chain.tensors, i), LAYOUT)
    for name, value in x.items():
        eps = {torch.float16: 1e-3, torch.float32: 1e-6}.get(value.dtype, 1e-12)
        torch.testing.assert_close(chain.tensors[name], value, rtol=eps, atol=eps)


def test_a_reference_of_halves_moves_on_their_grid() -> None:
    x, w = model(1), model(0)
    data = encoded("*: ecsq(nmse=0.1)", x, w, 0)
    after = moved(w, data, LAYOUT)
    change = ModelCodec.decode(data, LAYOUT)
    assert change["half"].dtype == torch.float32
    assert after["half"].dtype == torch.float16
    assert torch.equal(after["half"], (w["half"].float() + change["half"]).half())
    assert_same(w, model(0))  # not changed


def test_any_other_bit_gives_another_fingerprint() -> None:
    found = {fingerprint(model(0))}
    for name, value in model(0).items():
        if value.numel():
            other = model(0)
            other[name] = torch.nextafter(
                value.double(), torch.full_like(value, 9.0).double()
            ).to(value.dtype)
            if value.dtype != torch.float64:
                other[name] = value.clone()
                other[name].reshape(-1)[0] = -other[name].reshape(-1)[0]
            found.add(fingerprint(other))
    w = model(0)["weight"]
    found.add(fingerprint(model(0) | {"weight": w.reshape(64, 32)}))
    found.add(fingerprint(dict(reversed(model(0).items()))))
    found.add(fingerprint({f"a{k}": v for k, v in model(0).items()}))
    found.add(fingerprint(model(0) | {"empty": torch.zeros(4, 0)}))
    assert len(found) == 1 + 4 + 4
    assert 0 not in found
    assert fingerprint({}) != 0
    assert fingerprint(model(0) | {"weight": w.T.contiguous().T}) in found


def test_a_stranger_to_the_chain_is_refused() -> None:
    chain, references = a_chain("*: topk(fraction=0.2)", 3)
    stranger = model(5)
    with pytest.raises(ProtocolError, match="none of the 4 that this message"):
        followed(stranger, fingerprint(stranger), chain.links, chain.end, LAYOUT)
    # It names the right one, but holds another: noticed when it has followed.
    with pytest.raises(ProtocolError, match="following the model gives"):
        followed(stranger, fingerprint(references[0]), chain.links, chain.end, LAYOUT)


def test_damage_on_the_way_is_refused() -> None:
    chain, references = a_chain("*: topk(fraction=0.2)", 2)
    first, second = chain.links
    cut = [Link(first.before, first.data[:-1]), second]
    with pytest.raises(WireError):
        followed(references[0], first.before, cut, chain.end, LAYOUT)
    doubled = [first, Link(second.before, first.data)]
    with pytest.raises(ProtocolError, match="memory is damaged"):
        followed(references[0], first.before, doubled, chain.end, LAYOUT)


def test_moves_are_kept_until_they_are_larger_than_the_model() -> None:
    chain, references = a_chain("*: topk(fraction=0.2)", 12)
    size = chain.num_bytes
    assert size == sum(t.numel() * t.element_size() for t in model(0).values())
    total = sum(len(link.data) for link in chain.links)
    assert size - 2_000 < total <= size
    assert 2 < len(chain.links) < 12
    oldest = len(references) - 1 - len(chain.links)
    assert chain.since(fingerprint(references[oldest - 1])) is None
    for number in range(oldest, len(references)):
        links = chain.since(fingerprint(references[number]))
        assert links is not None
        assert len(links) == len(references) - 1 - number
    assert chain.since(0) is None


def test_a_client_never_has_to_decode_more_than_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reference.MAX_LINKS == broadcast.MAX_LINKS
    monkeypatch.setattr(reference, "MAX_LINKS", 4)
    chain, _ = a_chain("*: topk(k=1)", 9)
    assert len(chain.links) == 4


def test_a_move_by_nothing_is_none() -> None:
    chain, _ = a_chain("*: topk(fraction=0.2)", 2)
    before, links = chain.end, list(chain.links)
    chain.move(
        encoded("*: topk(fraction=0.2)", chain.tensors, chain.tensors, 0), LAYOUT
    )
    assert (chain.end, chain.links) == (before, links)


def test_going_back_to_an_earlier_model_is_no_way_round() -> None:
    """Of two places in the chain the later one is meant."""
    tensors = {"w": torch.zeros(64)}
    layout = layout_of(tensors)
    chain = Chain(tensors)
    for step in (1.0, -1.0, 2.0):
        change = {"w": torch.zeros(64)}
        change["w"][3] = step
        data, _ = ModelCodec("*: topk(k=1)").encode(change, {}, stream(0))
        chain.move(data, layout)
    assert chain.links[0].before == chain.links[2].before
    links = chain.since(fingerprint(tensors))
    assert links == tuple(chain.links[2:])
    got = followed(tensors, fingerprint(tensors), chain.links, chain.end, layout)
    assert_same(got, chain.tensors)

"""Parcels, rows, a vertex's steps, and what the mail room refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fl_lowrank import rng, topology
from fl_lowrank.consensus import Averaging, MailRoom, Parcel, Rows, node
from fl_lowrank.consensus.measures import average, consensus_distance
from fl_lowrank.envelope import TRAIN, Reply
from fl_lowrank.errors import CompressionError, InputError, ProtocolError, WireError
from fl_lowrank.grouping import layout_of
from fl_lowrank.mixing import metropolis

MODEL = {
    "conv.weight": rng.stream(1).normal(3, 4),
    "norm.weight": torch.ones(3, dtype=torch.float16),
    "norm.running_mean": torch.zeros(3),
    "norm.running_var": torch.ones(3),
    "norm.num_batches_tracked": torch.tensor(7),
    "mask": torch.tensor([True, False]),
}
ROWS = Rows(layout_of(MODEL))
MIXING = metropolis(topology.cycle(3))


def test_a_row_is_parameters_then_statistics() -> None:
    assert list(ROWS.mixed) == [
        *("conv.weight", "norm.weight", "norm.running_mean", "norm.running_var")
    ]
    assert (ROWS.num_parameters, ROWS.size, ROWS.dtype) == (15, 21, torch.float32)
    row = ROWS.join(MODEL)
    assert row.shape == (21,)
    for name, tensor in ROWS.cut(row).items():
        assert torch.equal(tensor, MODEL[name].float())
    double = Rows(layout_of({"a": torch.zeros(2).double(), "b": torch.zeros(1)}))
    assert double.dtype == torch.float64
    exactly = Rows(layout_of(MODEL), ["conv*"])
    assert next(iter(exactly.statistics)) == "conv.weight"
    assert Rows({}).join({}).shape == (0,)


def test_a_parcel_comes_back() -> None:
    for flow, model in ((b"", b""), (b"flow", b""), (b"flow", b"model")):
        parcel = Parcel(ROWS.layout, flow, model)
        assert Parcel.unpack(parcel.pack()) == parcel
        assert list(Parcel.unpack(parcel.pack()).layout) == list(MODEL)


def test_a_damaged_parcel_is_refused() -> None:
    data = Parcel(ROWS.layout, b"flow", b"model").pack()
    for cut in range(len(data)):
        with pytest.raises(WireError):
            Parcel.unpack(data[:cut])
    for at in range(len(data)):
        with pytest.raises(WireError):
            Parcel.unpack(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_what_rounding_keeps_is_not_lost() -> None:
    state = node.begin(ROWS, MODEL, tracks=False)
    flow = {n: torch.full(t.shape, 2.0**-40).double() for n, t in ROWS.mixed.items()}
    for _ in range(2**14):
        state = node.gain(state, flow)
        before = node.model_of(ROWS, state)
    moved = before["norm.running_mean"]
    assert torch.equal(moved, torch.full((3,), 2.0**-26))
    after = {**before, "conv.weight": before["conv.weight"] + 1.0}
    trained = node.model_of(ROWS, node.train(state, before, after))
    assert torch.equal(trained["conv.weight"], after["conv.weight"])
    later = node.train(state, before, after)
    gained = later["model/norm.weight"].double() + later["rest/norm.weight"]
    assert gained.tolist() == [1.0 + 2.0**-26] * 3
    for name, tensor in MODEL.items():
        assert trained[name].dtype == tensor.dtype
    assert torch.equal(trained["mask"], MODEL["mask"])


def test_a_flow_that_comes_while_it_trains_stays() -> None:
    state = node.begin(ROWS, MODEL, tracks=False)
    before = node.model_of(ROWS, state)
    flow = {n: torch.full(t.shape, 0.1).double() for n, t in ROWS.mixed.items()}
    after = {n: x if x.dtype == torch.bool else x + 2 for n, x in before.items()}
    later = node.train(node.gain(state, flow), before, after)
    for name in ROWS.mixed:
        found = later["model/" + name].double() + later["rest/" + name]
        moved = after[name].double() - before[name].double()
        expected = MODEL[name].double() + flow[name] + moved
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert int(node.model_of(ROWS, later)["norm.num_batches_tracked"]) == 9


@pytest.mark.parametrize(
    "changes",
    [
        {"model/conv.weight": torch.zeros(3, 4).double()},  # of an older version
        {"rest/conv.weight": torch.zeros(2)},
        {"model/more": torch.zeros(2)},
    ],
)
def test_a_state_of_another_model_does_not_fit(
    changes: dict[str, torch.Tensor],
) -> None:
    state = node.begin(ROWS, MODEL, tracks=True)
    assert node.fits(ROWS, state)
    assert not node.fits(ROWS, state | changes)
    assert not node.fits(ROWS, {n: x for n, x in state.items() if n != "model/mask"})


def test_variances_stay_positive() -> None:
    state = node.begin(ROWS, MODEL, tracks=False)
    flow = {n: torch.full(t.shape, -5.0).double() for n, t in ROWS.mixed.items()}
    model = node.model_of(ROWS, node.gain(state, flow))
    assert model["norm.running_var"].tolist() == [0.0] * 3
    assert model["norm.running_mean"].tolist() == [-5.0] * 3


def test_integers_that_float64_cannot_hold_are_refused() -> None:
    rows = Rows(layout_of({"n": torch.tensor([2**60])}))
    with pytest.raises(InputError, match="below 2\\^53 in 'n'"):
        node.begin(rows, {"n": torch.tensor([2**60])}, tracks=False)


def answer(room: MailRoom, vertex: int, **changes: object) -> Reply:
    request, _ = room.write(vertex, TRAIN, deadline=1e12, codec="identity()")
    state = node.begin(room.rows, MODEL, tracks=False)
    codec = node.ModelCodec("identity()")
    lossy, exact, _ = node.message(room.rows, state, codec, {}, rng.stream(0))
    reply = Reply(
        request.fid,
        request.epoch,
        request.ticket,
        request.applied,
        turn=5,
        encode_seconds=0.0,
        error_dropped=False,
        lossy=lossy,
        exact=exact,
    )
    return replace(reply, **changes)  # type: ignore[arg-type]


def test_a_reply_is_claimed_once() -> None:
    room = MailRoom(Averaging(MIXING, MIXING), MODEL)
    first, newer = answer(room, 0), answer(room, 0)
    with pytest.raises(ProtocolError, match=r"vertex 0.*came late or twice"):
        room.claim(0, first.pack())
    assert room.claim(0, newer.pack()) == newer
    with pytest.raises(ProtocolError, match="came late or twice"):
        room.claim(0, newer.pack())
    with pytest.raises(ProtocolError, match="came late or twice"):
        room.claim(1, answer(room, 0).pack())
    lost = answer(room, 1, base=0)
    assert room.claim(1, lost.pack()) is None
    assert not room.boxes[1].known


@pytest.mark.parametrize(
    "changes",
    [
        {"lossy": b"x"},
        {"lossy": b""},
        {"exact": b""},
        {"exact": b"more"},
        {"lossy": node.encode_exactly({"a": torch.zeros(3)})},
    ],
)
def test_a_wrong_message_changes_nothing(changes: dict[str, bytes]) -> None:
    room = MailRoom(Averaging(MIXING, MIXING), MODEL)
    reply = answer(room, 0, **changes)
    before, applied = room.public.clone(), room.boxes[0].applied
    with pytest.raises(CompressionError):
        room.enter(0, reply)
    assert torch.equal(room.public, before)
    assert (room.boxes[0].applied, room.held) == (applied, {})


def test_a_flow_stays_until_a_message_contains_it() -> None:
    room = MailRoom(Averaging(MIXING, MIXING), MODEL)
    for vertex in range(3):
        room.enter(vertex, answer(room, vertex))
    room.mix(torch.arange(3))
    number = room.boxes[0].flow_id
    assert number
    with pytest.raises(
        ProtocolError, match=f"a model with flow {number}, found flow 1"
    ):
        room.enter(0, answer(room, 0, epoch=1))
    assert room.boxes[0].flow is not None
    room.enter(0, answer(room, 0))
    assert room.boxes[0].flow is None


def test_means_and_distances() -> None:
    models = [MODEL, {**MODEL, "conv.weight": MODEL["conv.weight"] + 2.0}]
    mean = average(models)
    torch.testing.assert_close(mean["conv.weight"], MODEL["conv.weight"] + 1.0)
    assert mean["norm.num_batches_tracked"].dtype == torch.int64
    assert int(mean["norm.num_batches_tracked"]) == 7
    norm = float(torch.cat([mean["conv.weight"].reshape(-1), torch.ones(3)]).norm())
    found = consensus_distance(ROWS, models, mean)
    assert found == pytest.approx(12**0.5 / norm, rel=1e-6)
    nothing = {"a": torch.zeros(2)}
    assert consensus_distance(Rows(layout_of(nothing)), [nothing], nothing) == 0.0

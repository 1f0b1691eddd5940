"""Mistakes of users: one clear message each, and the run goes on without the client."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import FedAvg

from clients import CompressionMod
from fl_lowrank.errors import ProtocolError, SettingError, SpecError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    changing,
    fedavg_by_hand,
    initial_arrays,
    logged,
    partition_of,
    quadratic_app,
    train,
)

BAD = 1
NUM_ROUNDS = 3


def metrics_of(reply: Message) -> MetricRecord:
    return reply.content["metrics"]


def set_arrays(**arrays: np.ndarray) -> Callable[[Message], None]:
    def change(reply: Message) -> None:
        record = {name: Array(value) for name, value in arrays.items()}
        reply.content["arrays"] = ArrayRecord(record)

    return change


def examples(value: object) -> Callable[[Message], object]:
    return lambda reply: metrics_of(reply).update({"num-examples": value})


def raise_error(reply: Message) -> None:
    raise RuntimeError("out of memory")


W = np.ones(DIM, np.float32)
MISTAKES: dict[str, tuple[Callable[[Message], object], str]] = {
    "another name": (set_arrays(v=W), "differ from the received ones in 2 places"),
    "another shape": (set_arrays(w=W[:-1]), "return the same names, shapes and dtypes"),
    "another dtype": (set_arrays(w=W.astype(np.float64)), "torch.float64"),
    "an array more": (set_arrays(w=W, v=W), "differ from the received ones in 1 pl"),
    "text in an array": (set_arrays(w=np.array(["a"])), "cannot be read as numbers"),
    "NaN": (set_arrays(w=W * np.nan), "'w' holds NaN or infinite numbers"),
    "infinity": (set_arrays(w=W * np.inf), "holds NaN or infinite numbers"),
    "two array records": (
        lambda r: r.content.update({"more": ArrayRecord({"v": Array(W)})}),
        "expected exactly one ArrayRecord in the reply, found 2",
    ),
    "no array record": (lambda r: r.content.pop("arrays"), "found 0"),
    "two metric records": (
        lambda r: r.content.update({"more": MetricRecord({"a": 1})}),
        "expected one MetricRecord with a number 'num-examples' in the reply, found 2",
    ),
    "no examples": (lambda r: metrics_of(r).pop("num-examples"), "'num-examples'"),
    "a list of examples": (examples([1, 2]), "a number 'num-examples'"),
    "zero examples": (examples(0), "in (0, 1e+12] in the reply, found 0"),
    "negative examples": (examples(-3), "in (0, 1e+12] in the reply, found -3"),
    "NaN examples": (examples(float("nan")), "in (0, 1e+12] in the reply, found nan"),
    "1e300 examples": (examples(1e300), "in (0, 1e+12] in the reply, found 1e+300"),
    "other metrics": (
        lambda r: metrics_of(r).update({"more": 1.0}),
        "metrics differ from those of most replies",
    ),
    "a longer metric": (
        lambda r: metrics_of(r).update({"loss": [0.0, 1.0]}),
        "metrics differ from those of most replies",
    ),
    "an exception": (raise_error, "out of memory"),
}


@pytest.mark.parametrize("feedback", ["ef", "ef21"])
@pytest.mark.parametrize("name", MISTAKES)
def test_the_run_goes_on_without_the_client(name: str, feedback: str) -> None:
    change, reason = MISTAKES[name]
    app = quadratic_app([CompressionMod(), changing(change, BAD)])
    strategy = Compressed(FedAvg(), uplink="identity()", feedback=feedback)
    with logged() as lines:
        result = train(strategy, app, num_rounds=NUM_ROUNDS)

    others = [i for i in range(NUM_NODES) if i != BAD]
    expected = fedavg_by_hand(NUM_ROUNDS, others)
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)
    assert [r["num_replies"] - r["dropped"] for r in strategy.ledger.rounds()] == [
        3
    ] * NUM_ROUNDS
    if name == "an exception":
        return  # Flower reports those
    ours = [x for x in lines if x.startswith(("CompressionMod:", "Compressed: left"))]
    assert len(ours) == NUM_ROUNDS
    assert all(reason in line for line in ours)


def test_another_order_of_arrays_is_no_mistake() -> None:
    def swap(reply: Message) -> None:
        arrays = reply.content["arrays"]
        reply.content["arrays"] = ArrayRecord(dict(reversed(arrays.items())))

    initial = initial_arrays(buffers=True)
    app = quadratic_app([CompressionMod(), changing(swap, BAD)])
    result = train(Compressed(FedAvg(), uplink="identity()"), app, arrays=initial)
    same = train(Compressed(FedAvg(), uplink="identity()"), arrays=initial)
    assert {k: a.data for k, a in result.arrays.items()} == {
        k: a.data for k, a in same.arrays.items()
    }
    assert list(result.arrays) == list(initial)


def mod_for(*partitions: int) -> Mod:
    """Give `CompressionMod` on some nodes only."""
    with_mod = CompressionMod()

    def mod(message, context, call_next):  # type: ignore[no-untyped-def]
        used = with_mod if partition_of(context) in partitions else None
        return (
            used(message, context, call_next) if used else call_next(message, context)
        )

    return mod


def test_a_mod_forgotten_on_one_client() -> None:
    strategy = Compressed(FedAvg(), uplink="identity()")
    with logged() as lines:
        result = train(
            strategy, quadratic_app([mod_for(0, 2, 3)]), num_rounds=NUM_ROUNDS
        )
    expected = fedavg_by_hand(NUM_ROUNDS, [0, 2, 3])
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)
    # It was asked once, not once a round.
    assert len([x for x in lines if x.startswith("Compressed: node ")]) == 1


def test_a_mod_forgotten_on_all_clients_ends_the_run_at_once() -> None:
    grid = LoopbackGrid(quadratic_app([]), NUM_NODES)
    with pytest.raises(ProtocolError, match=r"none of 4 nodes .*CompressionMod\(\)"):
        train(Compressed(FedAvg(), uplink="identity()"), grid=grid)
    assert grid.exchange == 1


def test_a_mod_that_is_not_the_outermost() -> None:
    """Nothing is compressed behind another mod's back; the server says what to do."""

    def clipping(message, context, call_next):  # type: ignore[no-untyped-def]
        reply = call_next(message, context)
        if reply.content.array_records:
            reply.content["arrays"] = ArrayRecord({"w": Array(W)})
        return reply

    app = quadratic_app([clipping, CompressionMod()])
    with logged() as lines, pytest.raises(ProtocolError, match="none could be decoded"):
        train(Compressed(FedAvg(), uplink="identity()"), app, num_rounds=9)
    assert any("put CompressionMod() first in the ClientApp's mods" in x for x in lines)


def test_a_forgotten_wrapper_leaves_all_messages_untouched() -> None:
    with_mod = train(FedAvg(), quadratic_app([CompressionMod()]))
    without = train(FedAvg(), quadratic_app([]))
    assert with_mod.arrays["w"].data == without.arrays["w"].data
    assert with_mod.train_metrics_clientapp == without.train_metrics_clientapp


def test_three_rounds_without_a_usable_reply_end_the_run() -> None:
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    grid.client_app = quadratic_app(
        [CompressionMod(), changing(raise_error, *range(4))]
    )
    with pytest.raises(ProtocolError, match=r"3 rounds in a row .*out of memory"):
        train(Compressed(FedAvg(), uplink="identity()"), grid=grid, num_rounds=9)


def test_two_bad_rounds_do_not_end_the_run() -> None:
    def fail_early(reply: Message) -> None:
        if grid.exchange < 6:  # introductions, then two rounds of two exchanges
            raise_error(reply)

    grid = LoopbackGrid(ClientApp(), NUM_NODES)
    grid.client_app = quadratic_app([CompressionMod(), changing(fail_early, *range(4))])
    strategy = Compressed(FedAvg(), uplink="identity()")
    result = train(strategy, grid=grid, num_rounds=4)
    expected = fedavg_by_hand(2, range(NUM_NODES))
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-4)


def test_a_run_without_training_is_no_empty_run() -> None:
    strategy = Compressed(FedAvg(fraction_train=0.0), uplink="identity()")
    result = train(strategy, num_rounds=5)
    assert len(result.evaluate_metrics_clientapp) == 5


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"uplink": "topk(fraktion=0.1)"}, SpecError, "fraktion"),
        ({"uplink": "lossless_magic()"}, SpecError, "lossless_magic"),
        ({"uplink": "topk(fraction=2.0)"}, SettingError, "fraction"),
        ({"feedback": "ef22"}, SettingError, "ef22"),
    ],
)
def test_unknown_texts_are_refused_at_construction(
    options: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Compressed(FedAvg(), **options)

"""Buffers travel exactly, and every array keeps its name, place, shape and dtype."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Result

from clients import CompressionMod
from strategies import Compressed
from tests.strategies.federation import NUM_NODES, num_examples, partition_of, train

COARSE = "*: topk(k=1)"  # loses nearly everything that it may touch

INITIAL: dict[str, np.ndarray] = {
    "half": np.linspace(0, 1, 50, dtype=np.float16),
    "single": np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 20),
    "double": np.linspace(2, 3, 40, dtype=np.float64),
    "scalar": np.array(0.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "bn.running_mean": np.zeros(7, np.float32),
    "bn.running_var": np.ones(7, np.float64),
    "bn.num_batches_tracked": np.array(0),
    "counts": np.arange(5, dtype=np.int32),
    "flags": np.array([True, False]),
    "head.weight": np.linspace(0, 1, 30, dtype=np.float32),
}
MODEL = ArrayRecord({name: Array(value) for name, value in INITIAL.items()})


def answer(name: str, received: np.ndarray, partition: int) -> np.ndarray:
    """Give what a node makes of an array; in the array's dtype."""
    rng = np.random.default_rng((partition, len(name)))
    if received.dtype == bool:
        return received
    if received.dtype.kind == "i":
        return np.asarray(received + np.asarray(partition + 1, received.dtype))
    moved = received + 0.1 * rng.random(received.shape)
    return np.asarray(moved, received.dtype)


def app() -> ClientApp:
    client = ClientApp(mods=[CompressionMod()])

    @client.train()
    def train_(message: Message, context: Context) -> Message:
        partition = partition_of(context)
        arrays = {
            name: Array(answer(name, array.numpy(), partition))
            for name, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": num_examples(partition)})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        del context
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return client


def mean_of(name: str) -> np.ndarray:
    answers = [answer(name, INITIAL[name], i) for i in range(NUM_NODES)]
    weights = [num_examples(i) for i in range(NUM_NODES)]
    return np.average(np.asarray(answers, np.float64), axis=0, weights=weights)


def run(strategy: Compressed, num_rounds: int = 1) -> Result:
    return train(strategy, app(), arrays=MODEL, num_rounds=num_rounds)


@pytest.mark.parametrize("feedback", ["plain", "ef", "ef21"])
@pytest.mark.parametrize("uplink", ["identity()", COARSE, "powersgd(rank=1)"])
def test_every_array_keeps_name_place_shape_and_dtype(
    uplink: str, feedback: str
) -> None:
    result = run(Compressed(FedAvg(), uplink, feedback), num_rounds=3)
    assert list(result.arrays) == list(INITIAL)
    for name, array in result.arrays.items():
        value = array.numpy()
        assert (value.dtype, value.shape) == (INITIAL[name].dtype, INITIAL[name].shape)


def test_without_loss_every_array_is_its_mean() -> None:
    result = run(Compressed(FedAvg(), "identity()"))
    for name, before in INITIAL.items():
        value = result.arrays[name].numpy()
        # Half a unit in the last place of the arrays' own dtype, a bit more for the
        # updates, which travel in float32.
        precision = 1e-7 if before.dtype == np.float64 else np.finfo(np.float32).eps
        if before.dtype == np.float16:
            precision = np.finfo(np.float16).eps
        expected = mean_of(name)
        if before.dtype.kind in "ib":
            np.testing.assert_array_equal(value, expected.astype(before.dtype))
        else:
            np.testing.assert_allclose(value, expected, rtol=precision, atol=1e-7)


@pytest.mark.parametrize("feedback", ["plain", "ef", "ef21"])
def test_statistics_and_integers_are_exact_whatever_the_compressor(
    feedback: str,
) -> None:
    result = run(Compressed(FedAvg(), COARSE, feedback))
    exact = {n for n in INITIAL if n.startswith("bn.") or n in ("counts", "flags")}
    for name in exact:
        expected = mean_of(name).astype(INITIAL[name].dtype)
        np.testing.assert_array_equal(result.arrays[name].numpy(), expected)
    lossy = np.abs(result.arrays["single"].numpy() - mean_of("single")) > 1e-3
    assert lossy.mean() > 0.5


def test_a_list_adds_to_what_is_exact() -> None:
    result = run(Compressed(FedAvg(), COARSE, exact=["head.*", "half"]))
    for name in ("head.weight", "half"):
        expected = mean_of(name).astype(INITIAL[name].dtype)
        np.testing.assert_array_equal(result.arrays[name].numpy(), expected)
    without = run(Compressed(FedAvg(), COARSE))
    assert not np.allclose(
        without.arrays["head.weight"].numpy(), mean_of("head.weight")
    )


def test_exact_arrays_have_no_memory() -> None:
    """They are sent as they are every round, not as a sum of changes."""
    result = run(Compressed(FedAvg(), COARSE, "ef21"), num_rounds=4)
    weights = np.array([num_examples(i) for i in range(NUM_NODES)])
    step = np.average(np.arange(1, NUM_NODES + 1), weights=weights)
    counts = INITIAL["counts"]
    for _ in range(4):
        counts = (counts + step).astype(np.int32)
    np.testing.assert_array_equal(result.arrays["counts"].numpy(), counts)


def test_strategies_that_see_single_replies_get_whole_models() -> None:
    seen: list[dict[str, np.dtype]] = []

    class Looking(FedMedian):
        def aggregate_train(self, server_round: int, replies: list[Message]) -> object:
            for reply in replies:
                assert list(reply.content["arrays"]) == list(INITIAL)
                dtypes = {
                    k: a.numpy().dtype for k, a in reply.content["arrays"].items()
                }
                seen.append(dtypes)
            return super().aggregate_train(server_round, replies)

    result = run(Compressed(Looking(), "identity()", "plain"))
    assert seen == [{k: v.dtype for k, v in INITIAL.items()}] * NUM_NODES
    for name in ("single", "double", "bn.running_var"):
        answers = [answer(name, INITIAL[name], i) for i in range(NUM_NODES)]
        expected = np.median(answers, axis=0)
        np.testing.assert_allclose(result.arrays[name].numpy(), expected, atol=1e-6)


def test_a_model_without_anything_to_compress() -> None:
    names = ("bn.running_mean", "counts")
    arrays = ArrayRecord({name: MODEL[name] for name in names})
    result = train(Compressed(FedAvg(), COARSE), app(), arrays=arrays, num_rounds=2)
    assert list(result.arrays) == list(names)
    assert result.arrays["counts"].numpy().max() > INITIAL["counts"].max()

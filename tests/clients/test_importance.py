"""The mod with importance compressors: what is solved, when, and where it is kept.

The local loss is quadratic with a known best point for each weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from clients import CompressionMod, storage
from clients.turns import Memory
from fl_lowrank import ModelCodec
from fl_lowrank.envelope import EVALUATE, REQUEST_KEY, TRAIN, Reply, Request
from fl_lowrank.errors import ProtocolError
from fl_lowrank.model import layout_of
from simulations.loopback import LoopbackGrid
from simulations.loopback.transport import acting_as_client, become_server
from strategies import Compressed
from tests.strategies.federation import logged, partition_of, quadratic_app, train

NODE, RUN, EXAMPLES, SCALE = 7, 1, 10, 0.5
FACTOR = EXAMPLES / SCALE
BEFORE = {
    "w": np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5),
    "b": np.ones(6, np.float32),
    "n.running_mean": np.zeros(3, np.float32),
}
STEP = {
    "w": np.linspace(1, 2, 40, dtype=np.float32).reshape(8, 5),
    "b": np.full(6, 0.25, np.float32),
    "n.running_mean": np.full(3, 9.0, np.float32),
}
LOSSY = layout_of({"w": torch.zeros(8, 5), "b": torch.zeros(6)})
#: Best factor of each entry's step; the mean of 40 of them is 1.
BEST = torch.linspace(0.2, 1.8, 40).reshape(8, 5)
AFTER_STEP = {k: torch.from_numpy(BEFORE[k] + STEP[k]) for k in BEFORE}
MD = "w: md_weighted_greedy(k=10, refresh=3, steps=120); *: f16()"
Tensors = dict[str, Tensor]


def quadratic(p: Mapping[str, Tensor]) -> Tensors:
    best = torch.from_numpy(BEFORE["w"]) + BEST * torch.from_numpy(STEP["w"])
    return {"w": p["w"] - best, "b": p["b"] - p["b"]}


def factors(at: Tensors) -> Tensor:
    """By what the step to these parameters was multiplied."""
    return (at["w"] - torch.from_numpy(BEFORE["w"])) / torch.from_numpy(STEP["w"])


class Client:
    """A user's app behind the mod, which notes where gradients are asked for."""

    def __init__(self, gradient: Callable[..., Tensors] | None = quadratic) -> None:
        self.context = Context(RUN, NODE, {"partition-id": 3}, RecordDict(), {})
        self.function = gradient
        self.asked: list[Tensors] = []
        self.trained = self.seq = 0

    def gradient(self, p: Tensors, message: Message, context: Context) -> Tensors:
        assert context is self.context
        assert message.content["config"]["lr"] == 0.5
        assert REQUEST_KEY not in message.content["config"]
        self.asked.append({k: v.clone() for k, v in p.items()})
        assert self.function is not None
        found = self.function(p)
        p["n.running_mean"] += 1.0  # as a normalisation layer does
        return found

    def app(self, message: Message, context: Context) -> Message:
        del context
        self.trained += 1
        arrays = {k: Array(v + STEP[k]) for k, v in BEFORE.items()}
        metrics = MetricRecord({"num-examples": EXAMPLES})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    def serve(
        self, codec: str = MD, feedback: str = "plain", applied: int = 0,
        purpose: int = TRAIN,
    ) -> Message:  # fmt: skip
        self.seq += 1
        request = Request(
            purpose=purpose,
            fid=bytes(16),
            epoch=1,
            ticket=(1, self.seq),
            applied=applied,
            draws=5,
            scale=SCALE,
            deadline=time.time() + 100.0,
            codec=codec,
            feedback=feedback,
        )
        become_server(RUN)
        config = ConfigRecord({"lr": 0.5, REQUEST_KEY: request.pack()})
        arrays = ArrayRecord({k: Array(v) for k, v in BEFORE.items()})
        message = Message(
            RecordDict({"arrays": arrays, "config": config}), NODE, "train"
        )
        message.metadata.__dict__["_message_id"] = "m"
        function = None if self.function is None else self.gradient
        with acting_as_client(RUN, NODE):
            return CompressionMod(gradient=function)(message, self.context, self.app)

    @property
    def memory(self) -> Memory:
        found = storage.load(self.context)
        assert found is not None
        return found


def reply_in(answer: Message) -> Reply:
    assert not answer.has_error(), answer.error.reason
    (array,) = answer.content["arrays"].values()
    return Reply.unpack(array.data)


def count_in(answer: Message) -> int:
    return int(answer.content["metrics"]["extra-gradients"])


def test_the_weights_are_the_best_factors_of_the_step() -> None:
    client = Client()
    answer = client.serve()
    weights = client.memory.codec["w/weights"]
    torch.testing.assert_close(weights, BEST.reshape(-1), rtol=0.0, atol=2e-3)
    assert count_in(answer) == len(client.asked) == 120
    assert client.trained == 1
    update = FACTOR * torch.from_numpy(STEP["w"])
    found = ModelCodec.decode(reply_in(answer).lossy, LOSSY)["w"]
    product = (weights.reshape(8, 5) * update).reshape(-1)
    chosen = product.topk(10).indices
    expected = torch.zeros(40)
    expected[chosen] = (product / weights[chosen].mean())[chosen]
    torch.testing.assert_close(found.reshape(-1), expected)


def test_the_loss_is_asked_for_after_the_whole_step() -> None:
    """Weights are ones at first; the others' update is f16, the statistics trained."""
    client = Client()
    client.serve()
    for name, value in AFTER_STEP.items():
        torch.testing.assert_close(client.asked[0][name], value)
    for at in client.asked:
        torch.testing.assert_close(at["b"], AFTER_STEP["b"])
        torch.testing.assert_close(at["n.running_mean"], AFTER_STEP["n.running_mean"])
        assert float(factors(at).mean()) == pytest.approx(1.0, abs=1e-5)


def test_statistics_are_sent_as_they_were_trained() -> None:
    answer = Client().serve()
    exact = layout_of({"n.running_mean": torch.zeros(3)})
    sent = ModelCodec.decode(reply_in(answer).exact, exact)["n.running_mean"]
    assert torch.equal(sent, AFTER_STEP["n.running_mean"])


def test_weights_are_renewed_every_so_many_rounds_from_the_last_ones() -> None:
    client = Client()
    assert [count_in(client.serve()) for _ in range(3)] == [120, 0, 0]
    before = client.memory.codec["w/weights"].reshape(8, 5)
    assert count_in(client.serve()) > 0
    torch.testing.assert_close(factors(client.asked[120]), before)
    assert [count_in(client.serve()) for _ in range(2)] == [0, 0]


def test_with_error_feedback_the_step_holds_what_was_dropped() -> None:
    client = Client()
    codec = "w: md_greedy(k=10, refresh=1, steps=2); *: f16()"
    client.serve(codec, "ef")
    client.asked.clear()
    client.serve(codec, "ef")  # the first turn was not applied: two updates to send
    twice = torch.from_numpy(BEFORE["b"] + 2 * STEP["b"])
    torch.testing.assert_close(client.asked[0]["b"], twice)
    assert float(client.memory.codec["w/weights"].std()) > 0.01
    assert float(factors(client.asked[0]).mean()) == pytest.approx(2.0, abs=1e-5)


def test_with_ef21_the_step_starts_from_what_the_server_has() -> None:
    """Whatever the memory holds, memory and distance together are the update."""
    client = Client()
    codec = "w: md_greedy(k=10, refresh=1, steps=2); *: topk(k=2)"
    reply = reply_in(client.serve(codec, "ef21"))
    client.asked.clear()
    client.serve(codec, "ef21", applied=reply.turn)
    memory = client.memory.tensors
    assert int((memory["w"] != 0).sum()) == 10
    torch.testing.assert_close(client.asked[0]["b"], AFTER_STEP["b"])
    first = client.asked[0]["w"]
    known = memory["w"] / FACTOR
    rest = torch.from_numpy(STEP["w"]) - known
    start = (first - torch.from_numpy(BEFORE["w"]) - known) / rest
    there = rest.abs() > 1e-3
    assert int(there.sum()) == 30
    assert float(start[there].min()) > 0.0


def test_without_a_gradient_the_reply_says_what_to_add() -> None:
    client = Client(gradient=None)
    answer = client.serve()
    assert answer.has_error()
    assert "'w' is to be compressed by importance weights" in answer.error.reason
    assert "CompressionMod(gradient=fn)" in answer.error.reason
    assert client.trained == 0
    assert storage.load(client.context) is None
    assert not client.serve("topk(k=3)").has_error()
    assert not client.serve(purpose=EVALUATE).has_error()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda p: {"b": p["b"]}, "for 'w', found nothing"),
        (lambda p: {"w": p["w"].T}, r"shape (8, 5) for 'w', found (5, 8)"),
        (lambda p: {"w": p["w"] / 0.0}, "NaN or infinity"),
    ],
)
def test_a_useless_gradient_leaves_the_memory_as_it_was(
    bad: Callable[..., Tensors], reason: str
) -> None:
    client = Client()
    codec = MD.replace("refresh=3", "refresh=1")
    reply = reply_in(client.serve(codec, "ef"))
    before = storage.to_bytes(client.memory)
    client.function = bad
    answer = client.serve(codec, "ef", applied=reply.turn)
    assert answer.has_error()
    assert reason in answer.error.reason
    assert storage.to_bytes(client.memory) == before
    client.function = quadratic
    assert not client.serve(codec, "ef", applied=reply.turn).has_error()


def test_what_ends_a_memory_ends_its_weights() -> None:
    """A server that knows another turn: the weights start anew."""
    client = Client()
    client.serve(feedback="ef")
    client.serve(feedback="ef", applied=12345)
    torch.testing.assert_close(factors(client.asked[120]), torch.ones(8, 5))


def test_other_codecs_say_nothing_of_gradients() -> None:
    client = Client()
    answer = client.serve("topk(k=3) >> natural()")
    assert "extra-gradients" not in answer.content["metrics"]
    assert client.asked == []


def test_weights_go_with_a_chain_and_several_tensors() -> None:
    client = Client()
    codec = (
        "w: shrunk(inner=md_stochastic(k=9, steps=6)); b: md_greedy(k=2) >> natural()"
    )
    assert count_in(client.serve(codec)) == 10  # shared; the most that one asks for
    state = client.memory.codec
    assert state["w/weights"].shape == (40,)
    assert torch.equal(state["b/outer.weights"], torch.ones(6))  # its gradient is 0
    assert float(state["w/weights"].std()) > 0.1


def gradient_of_partition(
    p: Tensors, message: Message, context: Context
) -> Mapping[str, Tensor]:
    del message
    if partition_of(context) == 0:
        return {}
    return {"w": p["w"] - partition_of(context)}


def test_a_federation_learns_and_counts_its_gradients() -> None:
    strategy = Compressed(
        FedAvg(), "*: md_weighted_greedy(fraction=0.3, refresh=2, steps=4)"
    )
    app = quadratic_app([CompressionMod(gradient=gradient_of_partition)])
    with logged() as lines:
        result = train(strategy, app, num_rounds=3)
    assert sum("for 'w', found nothing" in line for line in lines) == 3  # client 0
    rows = strategy.ledger.rounds()
    assert [row["num_replies"] for row in rows] == [3, 3, 3]
    assert [row["extra_gradients"] for row in rows] == [12, 0, 12]
    for row in rows:
        metrics = result.train_metrics_clientapp[int(row["round"])]
        assert metrics["extra_gradients"] == row["extra_gradients"]
        assert metrics["extra-gradients"] == row["extra_gradients"] / 3


def test_a_run_without_gradients_ends_with_what_to_add() -> None:
    def some(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        knows = partition_of(context) > 0
        mod = CompressionMod(gradient=gradient_of_partition if knows else None)
        return mod(message, context, call_next)

    uplink = "*: md_greedy(k=3) >> natural()"
    strategy = Compressed(FedAvg(), uplink)
    train(strategy, quadratic_app([some]), num_rounds=2)
    assert [row["num_replies"] for row in strategy.ledger.rounds()] == [3, 3]

    def nobody(app: ClientApp) -> None:
        train(Compressed(FedAvg(), uplink), grid=LoopbackGrid(app, 2), num_rounds=4)

    with pytest.raises(ProtocolError, match=r"write CompressionMod\(gradient=fn\)"):
        nobody(quadratic_app())

"""Compressed models on a network without faults: bits, bytes, and what is trained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy

from clients import CompressionMod
from fl_lowrank.errors import InputError, SettingError
from simulations.loopback import LoopbackGrid
from strategies import Compressed
from tests.strategies.downlinks import DOWNLINK, UPLINK, run, watched
from tests.strategies.federation import (
    DIM,
    NUM_NODES,
    distance,
    fedavg_by_hand,
    initial_arrays,
    quadratic_app,
    train,
)
from tests.strategies.reference_oracle import (
    ReferenceOracle,
)


@pytest.mark.parametrize(
    "downlink",
    [DOWNLINK, "*: dither(nmse=0.2)", "*: topk(fraction=0.3) >> natural()", "sign()"],
)
@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_all_ends_hold_the_same_bits(downlink: str, fraction: float) -> None:
    inner = FedAvg(
        fraction_train=fraction,
        fraction_evaluate=fraction,
        min_train_nodes=1,
        min_evaluate_nodes=1,
    )
    _, oracle, _ = run(Compressed(inner, UPLINK, downlink=downlink), 12)
    assert oracle.check_clients() == NUM_NODES
    assert len(oracle.trained) == 12 * NUM_NODES * fraction
    assert NUM_NODES <= oracle.counts["whole"] <= 2 * NUM_NODES
    assert oracle.counts["links"] > 0
    assert (oracle.counts["steps"] > 0) == (fraction < 1.0)
    assert len(oracle.references) > 3


@pytest.mark.parametrize(
    ("feedback", "memory"), [("ef", "sum"), ("ef21", "sum"), ("ef21", "per-node")]
)
def test_training_ends_where_it_ends_with_whole_models(
    feedback: str, memory: str
) -> None:
    strategy = Compressed(
        FedAvg(), "identity()", feedback, downlink=DOWNLINK, memory=memory
    )
    arrays, *_ = run(strategy, 20)
    wanted = fedavg_by_hand(400, range(NUM_NODES))
    error = np.linalg.norm(arrays["w"].numpy() - wanted) / np.linalg.norm(wanted)
    # The reference comes as near as the model stands still.
    plain = np.linalg.norm(fedavg_by_hand(20, range(NUM_NODES)) - wanted)
    assert error <= 1e-3 + 2.0 * plain / np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "inner", [lambda: FedAdam(eta=0.2), FedMedian], ids=["fedadam", "fedmedian"]
)
def test_the_server_adds_updates_to_its_own_model(inner: type[Strategy]) -> None:
    """With whole models and with compressed ones the steps are of one model."""
    found = []
    for downlink in (None, DOWNLINK):
        strategy = Compressed(inner(), "identity()", "plain", downlink=downlink)
        found.append(train(strategy, num_rounds=25).arrays)
    assert distance(*found) <= 0.05


def test_what_clients_get_is_near_the_model() -> None:
    """The error is at most the compressor's share of the way from the reference."""
    models: list[np.ndarray] = []

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        models.append(arrays["w"].numpy())

    grid, oracle = watched()
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    strategy = Compressed(inner, UPLINK, downlink=DOWNLINK)
    train(
        strategy,
        grid=grid,
        arrays=initial_arrays(buffers=True),
        num_rounds=12,
        evaluate_fn=keep,
    )
    given = [g["w"] for _, g in oracle.trained]
    assert len(given) == 24
    errors = [
        np.linalg.norm(models[i // 2] - w) / np.linalg.norm(models[i // 2] - models[0])
        for i, w in enumerate(given)
        if i >= 2
    ]
    assert 0.0 < max(errors) <= np.sqrt(1 / 9) * 1.0001


def test_statistics_and_counts_travel_exactly() -> None:
    models: list[ArrayRecord] = []

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        models.append(arrays)

    grid, oracle = watched()
    strategy = Compressed(FedAvg(fraction_evaluate=0.0), UPLINK, downlink=DOWNLINK)
    train(
        strategy,
        grid=grid,
        arrays=initial_arrays(buffers=True),
        num_rounds=4,
        evaluate_fn=keep,
    )
    for i, (_, model) in enumerate(oracle.trained):
        wanted = models[i // NUM_NODES]
        for name in ("bn.running_mean", "bn.num_batches_tracked"):
            assert model[name].tobytes() == wanted[name].numpy().tobytes()
            assert model[name].dtype == wanted[name].numpy().dtype
    assert int(models[-1]["bn.num_batches_tracked"].numpy()) == 20


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(dtype: type[np.floating]) -> None:
    arrays = ArrayRecord({"w": Array(np.zeros(DIM, dtype))})
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    oracle = ReferenceOracle(grid, arrays)
    grid.client_app = quadratic_app([CompressionMod(), oracle.mod])
    strategy = Compressed(FedAvg(), "identity()", downlink=DOWNLINK)
    result = train(strategy, grid=grid, arrays=arrays, num_rounds=20)
    assert oracle.check_clients() == NUM_NODES
    assert oracle.counts["whole"] == NUM_NODES
    assert result.arrays["w"].dtype == np.dtype(dtype).name
    wanted = fedavg_by_hand(20, range(NUM_NODES))
    error = np.linalg.norm(result.arrays["w"].numpy() - wanted)
    assert error <= 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "downlink", [None, "identity()", "*.bias: exact(); *: exact()"]
)
def test_without_one_messages_are_what_they_were(downlink: str | None) -> None:
    seen: list[list[bytes]] = [[], []]
    models = []
    for messages, options in zip(seen, ({}, {"downlink": downlink}), strict=True):
        strategy = Compressed(FedAvg(fraction_train=0.5), UPLINK, **options)
        grid = LoopbackGrid(quadratic_app(), NUM_NODES)

        def note(message: Message, messages: list[bytes] = messages) -> None:
            arrays = RecordDict(dict(message.content.array_records))
            content = recorddict_to_proto(arrays).SerializeToString(deterministic=True)
            messages.append(content)

        grid.on_request = note
        arrays = initial_arrays(buffers=True)
        models.append(train(strategy, grid=grid, arrays=arrays, num_rounds=4).arrays)
    assert seen[0] == seen[1]
    assert len(seen[0]) == NUM_NODES + 4 * (2 + 4)
    assert models[0]["w"].data == models[1]["w"].data
    assert strategy.downlink is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"downlink": "randk(fraction=0.1)"}, r"downlink cannot use .* would grow"),
        ({"downlink": "md_greedy(fraction=0.1)"}, "no samples"),
        ({"downlink": DOWNLINK, "uplink": None}, "needs an uplink"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, str], reason: str) -> None:
    grid = LoopbackGrid(quadratic_app(), NUM_NODES)
    with pytest.raises(SettingError, match=reason):
        train(Compressed(FedAvg(), **({"uplink": UPLINK} | options)), grid=grid)
    assert not grid.events


class Personal(FedAvg):
    """Sends half of the model."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: object
    ) -> Iterable[Message]:
        half = ArrayRecord({"w": Array(0.5 * arrays["w"].numpy() + 1.0)})
        return super().configure_train(server_round, half, config, grid)


def test_a_strategy_that_sends_another_model_is_refused() -> None:
    with pytest.raises(SettingError, match="or another model; use downlink=None"):
        train(Compressed(Personal(), UPLINK, downlink=DOWNLINK))


def test_a_model_that_has_diverged_is_named() -> None:
    arrays = initial_arrays()

    class Diverging(FedAvg):
        def aggregate_train(self, *args: object) -> object:
            _, metrics = super().aggregate_train(*args)
            return ArrayRecord({"w": Array(np.full(DIM, np.nan, np.float32))}), metrics

    with pytest.raises(InputError, match=r"'w'.*expected finite numbers"):
        train(
            Compressed(Diverging(), UPLINK, downlink=DOWNLINK, linear=True),
            arrays=arrays,
        )

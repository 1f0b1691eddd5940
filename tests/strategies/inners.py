"""Flower's strategies that average arrays, by how they look at replies."""

from __future__ import annotations

from collections.abc import Callable

from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from .federation import Overriding


def clipped(norm: float = 1.0) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, norm, 4)


def adaptively_clipped() -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), 0.0, 4, initial_clipping_norm=1.0
    )


LINEAR: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.8, server_momentum=0.5),
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedAdagrad": FedAdagrad,
}

OTHERS: dict[str, Callable[[], Strategy]] = {
    "Krum": Krum,
    "MultiKrum": lambda: MultiKrum(num_nodes_to_select=2),
    "Bulyan": Bulyan,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1, train_loss_key="loss"),
    "fixed clipping": clipped,
    "adaptive clipping": adaptively_clipped,
    "a subclass": Overriding,
}

"""Fashion-MNIST, 40 clients, the network of 1,474,550 parameters.

Dirichlet(0.3) labels, sizes by a power law, one local epoch. A fifth of the training
images is used, in 150 rounds: as many local steps as half of the images in 60. What
error feedback costs is a delay, and it is counted in rounds. The server's model is
evaluated every third round; a run takes 20 minutes on a core.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .experiment import Experiment

_TOPK = "topk(fraction=0.01) >> natural()"
_FEEDBACKS = {
    "identity": {"uplink": "identity()"},
    "ef": {"uplink": _TOPK, "feedback": "ef"},
    "ef21": {"uplink": _TOPK, "feedback": "ef21"},
}
_PARTICIPATIONS = {
    "all": {"fraction-train": 1.0, "num-rounds": 150},
    "sampled": {"fraction-train": 0.25, "num-rounds": 300},
}

_COMMON = {
    "dataset": "fashion-mnist",
    "model": "cnn",
    "train-samples": 12000,
    "alpha": 0.3,
    "fraction-evaluate": 0.05,
    "evaluate-every": 3,
    "local-epochs": 1,
    "batch-size": 32,
    "lr": 0.05,
    "precision": "bfloat16",
}

FASHION = Experiment(
    num_clients=40,
    common=_COMMON,
    settings={
        f"{feedback}-{participation}": changes | share
        for participation, share in _PARTICIPATIONS.items()
        for feedback, changes in _FEEDBACKS.items()
    },
    seeds=(0, 1),
)

#: One of each family, with error feedback and all clients.
FASHION_METHODS = Experiment(
    num_clients=40,
    common=_COMMON | {"num-rounds": 60, "feedback": "ef"},
    settings={
        "identity": {"uplink": "identity()"},
        "importance": {"uplink": "md_weighted_greedy(fraction=0.05) >> natural()"},
        "sparse-dithering": {"uplink": "sparse_dithering(nu=0.1)"},
        "powersgd": {"uplink": "powersgd(rank=16) >> ecsq(nmse=0.01)"},
        "eden": {"uplink": "eden_contractive(bits=1)"},
        "budget": {"uplink": "budget(bytes=100000)"},
        "sketch": {"uplink": "sketch(fraction=0.01, capacity=0.33)"},
    },
)

_SERVERS: Mapping[str, dict[str, Any]] = {
    "fedavg": {"strategy": "fedavg"},
    "fedadam": {"strategy": "fedadam", "server-lr": 0.01},
}
_DOWNLINKS: Mapping[str, dict[str, Any]] = {
    "whole": {"downlink": "identity()"},
    "ecsq": {"downlink": "ecsq(nmse=0.2)"},
    "ecsq-fine": {"downlink": "ecsq(nmse=0.05)"},
    "budget": {"downlink": "budget(bytes=250000)"},
}

#: Compressed both ways, a tenth of the clients in a round. So many rounds that a client
#: takes part thirty times: the first time it is sent the whole model.
FASHION_DOWNLINK = Experiment(
    num_clients=40,
    common=_COMMON
    | {
        "fraction-train": 0.1,
        "num-rounds": 300,
        "evaluate-every": 5,
        "lr-end-factor": 0.01,
        "uplink": _TOPK,
        "feedback": "ef",
    },
    settings={
        f"{server}-{downlink}": changes | way
        for downlink, way in _DOWNLINKS.items()
        for server, changes in _SERVERS.items()
    },
)

_SEVENTY_FIVE_TURNS = {
    "tenth": {"fraction-train": 0.1, "num-rounds": 750, "evaluate-every": 10},
    "quarter": {"fraction-train": 0.25, "num-rounds": 300, "evaluate-every": 4},
}
_MEMORIES: Mapping[str, dict[str, Any]] = {
    "fedavg": {"uplink": "none"},
    "ef": {"uplink": _TOPK, "feedback": "ef"},
    "ef-wide": {"uplink": "topk(fraction=0.05) >> natural()", "feedback": "ef"},
    "ef21-responders": {"uplink": _TOPK, "feedback": "ef21", "memory": "per-node"},
    "ef21-scaled": {"uplink": _TOPK, "feedback": "ef21"},
    # As many bytes as the others: unbiased, and as many entries as that leaves.
    "diana": {
        "uplink": "randk(fraction=0.025) >> natural_stochastic()",
        "feedback": "diana",
    },
    "plain": {"uplink": _TOPK, "feedback": "plain"},
}

#: Which feedback for sampled clients? A small network (101,770 parameters), so that
#: every client can take part 75 times with three seeds.
FASHION_PARTICIPATION = Experiment(
    num_clients=40,
    common=_COMMON | {"model": "mlp", "precision": "float32"},
    settings={
        f"{memory}-{share}": changes | rounds
        for share, rounds in _SEVENTY_FIVE_TURNS.items()
        for memory, changes in _MEMORIES.items()
    },
    seeds=(0, 1, 2),
)

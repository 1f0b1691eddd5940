"""The experiments: tables of settings, and nothing but tables.

``digits`` runs every method on a cycle of 4 in a minute. ``fashion`` is the comparison
of S. Tikhonkov, "Research and Application of Consensus Algorithms for Distributed
Training of Neural Networks" (thesis, St Petersburg State University, 2021, in Russian):
table 6 (cycle of 4 with batches of 25, torus 6 x 6 with batches of 6, beside single
models with 100 and 216) and, on Fashion-MNIST, its tables 4 (unbalanced) and 7
(gossip). Rate, momentum and number of epochs are not stated there for this data set,
nor are the periods of unequal agents; those here are our own. Its batches shrink with
the number of agents instead of the rate growing, so the rate is the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Changes = Mapping[str, Any]

_UNEQUAL = {"train_periods": "1,1,2,2", "mix_periods": "1,1,2,2"}
_TOPK = "topk(fraction=0.1) >> natural()"

DIGITS: Mapping[str, Changes] = {
    "single": {"topology": "complete:1", "batch_size": 64},
    "consensus": {},
    "consensus-every-5": {"mix_every": 5},
    "unbalanced": _UNEQUAL,
    "gossip-4": {"method": "gossip", "gossip_edges": 4},
    "gossip-2": {"method": "gossip", "gossip_edges": 2},
    "gossip-1": {"method": "gossip", "gossip_edges": 1},
    "compressed": {"compressor": _TOPK},
}

_FASHION = {
    "dataset": "fashion-mnist",
    "model": "cnn",
    "epochs": 20,
    "lr": 0.02,
    "momentum": 0.9,
    "warmup_epochs": 5,
    "milestones": "0.6,0.85",
}
_CYCLE = {**_FASHION, "topology": "cycle:4", "batch_size": 25, "evaluate_every": 2}
_TORUS = {**_FASHION, "topology": "torus:6x6", "batch_size": 6, "evaluate_every": 5}

FASHION: Mapping[str, Changes] = {
    "cycle-single": {**_CYCLE, "topology": "complete:1", "batch_size": 100},
    "cycle": _CYCLE,
    "cycle-unbalanced": {**_CYCLE, **_UNEQUAL},
    "cycle-gossip-4": {**_CYCLE, "method": "gossip", "gossip_edges": 4},
    "cycle-gossip-2": {**_CYCLE, "method": "gossip", "gossip_edges": 2},
    "cycle-gossip-1": {**_CYCLE, "method": "gossip", "gossip_edges": 1},
    "cycle-compressed": {**_CYCLE, "compressor": _TOPK},
    "torus-single": {**_TORUS, "topology": "complete:1", "batch_size": 216},
    "torus": _TORUS,
    "torus-unbalanced": {**_TORUS, **_UNEQUAL},
    "torus-unbalanced-often": {**_TORUS, "train_periods": "1,1,2,2"},
    "torus-compressed": {**_TORUS, "compressor": _TOPK},
}

EXPERIMENTS: Mapping[str, Mapping[str, Changes]] = {
    "digits": DIGITS,
    "fashion": FASHION,
}

"""``identity()`` against the plain strategy on Flower's Ray engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
def test_ten_rounds_on_ray_deviate_by_at_most_a_millionth(tmp_path: Path) -> None:
    out = tmp_path / "measured.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.strategies.ray_federation", str(out)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(out.read_text())
    assert set(measured) == {"FedAvg", "FedAdam"}
    for name, found in measured.items():
        assert found["deviation"] <= 1e-6, (name, found)
        assert found["moved"] > 0.05
        assert found["num_rounds"] == 10
        assert found["num_replies"] == 3 * 10

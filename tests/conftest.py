"""What every test shares: torch on one thread, so that suites may run side by side."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

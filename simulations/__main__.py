"""``python -m simulations``: run an experiment, see ``--help``."""

from __future__ import annotations

import sys

from .runner.main import main

if __name__ == "__main__":
    sys.exit(main())

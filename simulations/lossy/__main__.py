"""``python -m simulations.lossy``: run all problems and fates, see ``--help``."""

from __future__ import annotations

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())

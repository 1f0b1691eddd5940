"""Write the golden files that are missing; those that exist are never changed.

What the encoder writes in another way, while the old bytes are still read, moves to
``superseded``, and its file is written anew. A change of the format that old bytes do
not survive gets a new version number in `fl_lowrank.wire`, and files of new names.
"""

from __future__ import annotations

from tests.golden.cases import CASES, write

for case in CASES:
    if not case.path.exists():
        write(case)
        print(f"wrote {case.path.name}")

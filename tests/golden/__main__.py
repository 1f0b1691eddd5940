"""Write the golden files that are missing; those that exist are never changed.

An intended change of the format gets a new version number in `fl_lowrank.wire`, and
files of new names.
"""

from __future__ import annotations

from tests.golden.cases import CASES, write

for case in CASES:
    if not case.path.exists():
        write(case)
        print(f"wrote {case.path.name}")

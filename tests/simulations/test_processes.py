from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

from simulations.runner.processes import (
    MARK,
    has_process,
    marked_processes,
    stop_marked_processes,
)

# Starts a child in a session of its own that refuses to end when asked.
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child += "print('ready', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(60)
"""


def test_all_marked_processes_are_found_and_stopped() -> None:
    mark = uuid.uuid4().hex
    parent = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        env=os.environ | {MARK: mark},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        assert len(marked_processes(mark)) == 2
        assert has_process(mark, "SIG_IGN")
        assert not has_process(mark, "another-word")
        assert not marked_processes("another mark")
        start = time.monotonic()
        stop_marked_processes(mark)
        assert not marked_processes(mark)
        assert time.monotonic() - start < 30

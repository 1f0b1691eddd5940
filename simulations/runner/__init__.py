"""Start a run, watch it, stop everything that it started, say how it ended."""

"""The home of a client whose app does not name one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Context

from fl_lowrank.errors import SettingError

from .base import Home
from .context import ContextHome
from .file import FileHome
from .scratch import SCRATCH

#: Key in a node's config, and environment variable, that name the folder of the files.
NODE_KEY = "fl-lowrank-memory-dir"
VARIABLE = "FL_LOWRANK_MEMORY_DIR"
#: Bytes of a model above which its memories are too large for a Context: Flower keeps
#: all of them in one process, and ships each with every message.
LARGE_BYTES = 1_000_000


def choose(context: Context, fid: bytes, model_bytes: int) -> Home:
    """Decide where the memory of a client lives in one training.

    Who runs the node comes first: the folder that its config names, or else the
    environment. Without one, a deployed client keeps files in the user's state folder
    (``$XDG_STATE_HOME/fl-lowrank``, or ``~/.local/state/fl-lowrank``). In a simulation
    the memories of models above 1 MB are files in a temporary folder of that
    simulation, and smaller ones stay in the Context. All requests of a training have
    the same model, so a memory never moves.

    Parameters
    ----------
    context : Context
        The client's. Its node config is set where the node is started; the run config,
        which comes with the run, is not looked at.
    fid : bytes
        The training.
    model_bytes : int
        Of the arrays that are compressed.
    """
    named = context.node_config.get(NODE_KEY) or os.environ.get(VARIABLE)
    if named:
        return FileHome(str(named))
    if is_deployed():
        return FileHome(_state_folder())
    if model_bytes > LARGE_BYTES:
        return FileHome(SCRATCH.folder(fid), durable=False)
    return ContextHome()


def is_deployed() -> bool:
    """Whether this process serves a SuperNode, and not a simulation.

    A SuperNode starts the program ``flwr-clientapp`` for every message, and Flower
    itself tells by this name; simulations call the ClientApp in a worker of Ray or in
    their own process. The node config tells nothing: a deployed node may have a
    ``partition-id``, and a simulated one has nothing else.
    """
    return Path(sys.argv[0]).stem == "flwr-clientapp"


def _state_folder() -> Path:
    named = os.environ.get("XDG_STATE_HOME", "")
    if Path(named).is_absolute():  # else to be ignored, says that specification
        return Path(named) / "fl-lowrank"
    try:
        return Path.home() / ".local" / "state" / "fl-lowrank"
    except RuntimeError as error:
        msg = (
            "memory: expected a home folder of the user who runs the node, found none; "
            f"name a folder: --node-config '{NODE_KEY}=\"/a/folder\"' or {VARIABLE}"
        )
        raise SettingError(msg) from error

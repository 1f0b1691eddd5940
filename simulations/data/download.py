"""Downloads by torchvision into the user's cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import SimulationError
from .dataset import DATA_VARIABLE


def download(name: str, what: str, **options: Any) -> tuple[Any, Path]:
    """Let torchvision download a set once.

    Parameters
    ----------
    name : str
        The class in ``torchvision.datasets``.
    what : str
        What the data folder must hold instead, for the error.
    **options
        Of the class.

    Returns
    -------
    tuple[Any, Path]
        The instance, and the folder under which it keeps its files.
    """
    # torchvision is slow to import and only the download needs it.
    import torchvision

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "fl-lowrank"
    try:
        return getattr(torchvision.datasets, name)(
            str(root), download=True, **options
        ), root
    except Exception as error:
        # The download raises whatever the network layer raised.
        raise SimulationError(
            f"{name} could not be downloaded to {root} ({type(error).__name__}): let "
            f"{DATA_VARIABLE} name a folder that has {what}."
        ) from error

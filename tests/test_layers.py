"""Who may import whom, read from the sources.

`PACKAGES` are the layers of the repository, `TIERS` those inside `fl_lowrank`. A
module that is in neither fails: put it where it belongs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What a package may import besides the standard library and, relatively, itself.
PACKAGES: dict[str, set[str]] = {
    "fl_lowrank": {"torch", "numpy", "constriction", "networkx", "cvxpy"},
    "clients": {"fl_lowrank", "flwr", "torch", "numpy"},
    "strategies": {"fl_lowrank", "flwr", "torch", "numpy"},
    "simulations": {
        *("fl_lowrank", "clients", "strategies", "simulations", "flwr"),
        *("flwr_datasets", "datasets", "torch", "torchvision", "numpy", "sklearn"),
        *("scipy", "matplotlib", "networkx", "rich", "psutil", "PIL"),
    },
}

#: From below to above: a module imports from lower tiers, and packages from within.
TIERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "pages"),
    ("rng", "addends", "codecs"),
    ("types",),
    ("registry",),
    ("linalg", "shapes", "bounds", "topology", "schedules", "exchange"),
    ("hadamard", "importance", "lloyd_max", "mixing"),
    ("framing",),
    ("wire", "envelope"),
    ("compressors", "syntax", "broadcast"),
    ("decoders",),
    ("spec", "feedback"),
    ("theory", "scheduled"),
    ("updates",),
    ("grouping",),
    ("messages",),
    ("summing",),
    ("spending",),
    ("model",),
    ("allocate", "consensus", "reference"),
    ("checks", "report"),
    ("__main__",),
)
TIER = {name: number for number, names in enumerate(TIERS) for name in names}

Import = tuple[str, str, int]  # what, level and line


def imports(source: str) -> Iterator[tuple[int, str, int]]:
    """Level of dots, dotted name and line of all that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.level, node.module, node.lineno
            else:
                for alias in node.names:
                    yield node.level, alias.name, node.lineno


def package_faults(package: str, where: str, source: str) -> list[str]:
    """Give one line for each import that leaves the layer."""
    allowed = PACKAGES[package] | sys.stdlib_module_names
    depth = where.count("/")
    faults = []
    for level, name, line in imports(source):
        top = name.partition(".")[0]
        if level > depth:
            faults.append(f"{where}:{line}: {'.' * level}{name} leaves {package}")
        elif level == 0 and top not in allowed:
            faults.append(
                f"{where}:{line}: {package} may not import {top}; it may import "
                f"{', '.join(sorted(PACKAGES[package]))}"
            )
    return faults


def tier_faults(where: str, source: str) -> list[str]:
    """Give one line for each import inside `fl_lowrank` that goes up or sideways."""
    inside = where.split("/")[1:]
    own = inside[0].removesuffix(".py")
    if own == "__init__":
        return []
    if own not in TIER:
        return [f"{where}: {own} has no tier; add it to TIERS in tests/test_layers.py"]
    faults = []
    for level, name, line in imports(source):
        # ``from . import x`` at depth 1 and ``from .. import x`` at depth 2 name x.
        if level != len(inside):
            continue
        other = name.partition(".")[0]
        if other not in TIER:
            faults.append(f"{where}:{line}: {other} has no tier; add it to TIERS")
        elif TIER[other] >= TIER[own]:
            faults.append(
                f"{where}:{line}: {own} (tier {TIER[own]}) may not import {other} "
                f"(tier {TIER[other]})"
            )
    return faults


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_layers(package: str) -> None:
    faults = []
    for path in sources(package):
        where = path.relative_to(ROOT).as_posix()
        faults += package_faults(package, where, path.read_text())
        if package == "fl_lowrank":
            faults += tier_faults(where, path.read_text())
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_read(package: str) -> None:
    assert len(sources(package)) >= 3


def test_every_tier_exists() -> None:
    for name in TIER:
        at = ROOT / "fl_lowrank" / name
        assert at.is_dir() or at.with_suffix(".py").exists(), f"{name} in TIERS is gone"


@pytest.mark.parametrize(
    ("where", "source", "fault"),
    [
        ("clients/mod.py", "import strategies", "clients may not import strategies"),
        ("clients/mod.py", "from clients import x", "clients may not import clients"),
        ("clients/mod.py", "from ..strategies import x", "leaves clients"),
        ("strategies/a.py", "from clients.b import c", "may not import clients"),
        ("fl_lowrank/a.py", "import flwr.app", "fl_lowrank may not import flwr"),
        (
            "fl_lowrank/codecs/a.py",
            "def f():\n    from flwr import b",
            "fl_lowrank/codecs/a.py:2: fl_lowrank may not import flwr",
        ),
        ("fl_lowrank/a.py", "from fl_lowrank.b import c", "not import fl_lowrank"),
        ("simulations/a.py", "import tests", "simulations may not import tests"),
    ],
)
def test_a_wrong_import_is_named(where: str, source: str, fault: str) -> None:
    (line,) = package_faults(where.partition("/")[0], where, source)
    assert fault in line


@pytest.mark.parametrize(
    ("where", "source", "fault"),
    [
        ("fl_lowrank/wire.py", "from .compressors import x", "may not import comp"),
        ("fl_lowrank/wire.py", "from . import envelope", "may not import envelope"),
        ("fl_lowrank/codecs/a.py", "from .. import wire", "may not import wire"),
        ("fl_lowrank/codecs/a.py", "from ..checks.b import c", "may not import checks"),
        ("fl_lowrank/new.py", "import torch", "new has no tier"),
        ("fl_lowrank/wire.py", "from .new import x", "new has no tier"),
    ],
)
def test_a_wrong_tier_is_named(where: str, source: str, fault: str) -> None:
    (line,) = tier_faults(where, source)
    assert fault in line


def test_right_imports_are_let_through() -> None:
    assert not tier_faults("fl_lowrank/codecs/a.py", "from .b import c")
    assert not tier_faults("fl_lowrank/codecs/a.py", "from ..errors import c")
    assert not tier_faults("fl_lowrank/wire.py", "from .codecs import bits")
    assert not package_faults("simulations", "simulations/a.py", "import clients.mod")

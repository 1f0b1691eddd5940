"""Nothing is forgotten: each place that a new compressor touches has a test here.

`missing` looks at the five places and gives a line for each gap; the tests below it
remove entries one by one and read the lines.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

import fl_lowrank as fll
from fl_lowrank import checks, compressors, wire
from fl_lowrank.compressors import COMPRESSORS, Then
from fl_lowrank.decoders import DECODERS
from fl_lowrank.types import Coding, Compressor, Kind, Payload
from tests.golden.cases import CASES, COMMAND, FOLDER, read
from tests.instances import INSTANCES

MODULES = [
    importlib.import_module(f"{compressors.__name__}.{module.name}")
    for module in pkgutil.iter_modules(compressors.__path__)
]
KINDS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, Kind) and f"\n{name} = Kind(" in inspect.getsource(module)
}
CLASSES = [
    value
    for module in MODULES
    for value in vars(module).values()
    if inspect.isclass(value)
    and issubclass(value, Compressor)
    and not inspect.isabstract(value)
    and value.__module__ == module.__name__
]


def parts(compressor: Compressor) -> list[Compressor]:
    """A compressor and all that it is made of."""
    inner = [v for v in vars(compressor).values() if isinstance(v, Compressor)]
    return [compressor, *(part for c in inner for part in parts(c))]


def nested(payload: Payload) -> list[Payload]:
    """A payload and all inside it."""
    inner = [f.value for f in payload.fields.values() if isinstance(f.value, Payload)]
    return [payload, *(part for p in inner for part in nested(p))]


def seen(payloads: Iterable[Payload]) -> tuple[set[str], set[Coding]]:
    """Kinds and codings that occur."""
    flat = [part for payload in payloads for part in nested(payload)]
    codings = {f.coding for payload in flat for f in payload.fields.values()}
    return {payload.kind.name for payload in flat}, codings


@functools.cache
def sent_by(compressor: Compressor) -> Payload:
    """Give a message of a compressor; the classes' code is not what is looked at."""
    x = fll.rng.stream(0).normal(40, 24)
    return compressor.encode(x, compressor.init(x.shape), fll.rng.stream(1))[0]


@functools.cache
def unpack(message: bytes) -> Payload:
    """Read a message, whether or not the table of decoders knows its kinds."""
    return wire.unpack(message, {kind.code: kind for kind in KINDS.values()})


golden_at = functools.cache(read)


def missing(
    table: Mapping[str, type[Compressor]] = COMPRESSORS,
    decoders: Mapping[Kind, type[Compressor]] = DECODERS,
    exports: Sequence[str] = fll.__all__,
    family_exports: Sequence[str] = compressors.__all__,
    instances: Sequence[Compressor] = INSTANCES,
    golden: Iterable[Path] = tuple(FOLDER.glob("*.json")),
    laws: Sequence[checks.Law] = (*checks.LAWS, *checks.STATISTICAL_LAWS),
) -> list[str]:
    """Give one line for each gap: where it is, what is absent, what to do."""
    files = list(golden)
    goldens = [golden_at(path) for path in files]
    instance_parts = {type(p) for c in instances for p in parts(c)}
    # Not parsed and not unpacked by the tables, which may be what is incomplete.
    golden_names = {n for g in goldens for n in re.findall(r"(\w+)\(|>>", g.text)}
    lines = []
    for cls in CLASSES:
        name = cls.__name__
        if cls is not Then and table.get(cls.name) is not cls:
            lines.append(f"compressors/__init__.py: {name} is not in COMPRESSORS")
        for place, names in {
            "fl_lowrank/__init__.py": exports,
            "compressors/__init__.py": family_exports,
        }.items():
            if name not in names:
                lines.append(f"{place}: {name} is not exported; add it to __all__")
        if cls not in instance_parts:
            lines.append(f"tests/instances.py: no row for {name}")
        if ("" if cls is Then else cls.name) not in golden_names:
            lines.append(
                f"tests/golden: no file for {name}; add a case to cases.py and run "
                f"{COMMAND}"
            )
    names = {path.name for path in files}
    lines += [
        f"tests/golden: {case.path.name} is missing; run {COMMAND}"
        for case in CASES
        if case.path.name not in names
    ]
    lines += [
        f"decoders.py: no decoder for {where} ({kind.name!r}); add it to DECODERS"
        for where, kind in KINDS.items()
        if kind not in decoders
    ]
    for where, payloads in {
        "tests/instances.py": [sent_by(c) for c in instances],
        "tests/golden": [unpack(g.message) for g in goldens],
    }.items():
        kinds, codings = seen(payloads)
        lines += [
            f"{where}: no message of kind {kind.name!r}"
            for kind in KINDS.values()
            if kind.name not in kinds
        ]
        lines += [
            f"{where}: no field with coding {coding.name}"
            for coding in Coding
            if coding not in codings
        ]
    lines += [
        f"checks/__init__.py: {name} is in no list of laws"
        for name in checks.__all__
        if name.startswith("check_")
        and name not in ("check_all", "check_law", "check_guarantee_on")
        and name not in {law.__name__ for law in laws}
    ]
    return sorted(set(lines))


def test_nothing_is_missing() -> None:
    assert not missing(), "\n".join(missing())


def test_what_is_looked_at_is_not_empty() -> None:
    assert len(CLASSES) >= 14
    assert set(KINDS.values()) == set(DECODERS)


def test_numbers_and_names_of_kinds_are_unique() -> None:
    assert len({kind.code for kind in KINDS.values()}) == len(KINDS)
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)


def test_numbers_on_the_wire_never_change() -> None:
    assert {kind.name: kind.code for kind in KINDS.values()} | {
        "dense": 0,
        "half": 1,
        "sparse": 2,
        "seeded": 3,
        "powers": 4,
        "levels": 5,
        "lowrank": 6,
        "shrunk": 7,
        "projected": 18,
        "tucker": 19,
        "train": 20,
        "sketch": 21,
        "blocks": 8,
        "signs": 9,
        "binades": 10,
        "eden": 12,
        "rotated": 13,
        "dithered": 14,
        "induced": 22,
        "spherical": 16,
    } == {kind.name: kind.code for kind in KINDS.values()}
    assert [coding.value for coding in Coding] == list(range(len(Coding)))


@pytest.mark.parametrize("kind", DECODERS, ids=lambda kind: kind.name)
def test_a_removed_decoder_is_named(kind: Kind) -> None:
    left = {k: v for k, v in DECODERS.items() if k != kind}
    (line,) = missing(decoders=left)
    assert "no decoder for" in line
    assert repr(kind.name) in line


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_removed_name_is_named(name: str) -> None:
    left = {k: v for k, v in COMPRESSORS.items() if k != name}
    (line,) = missing(table=left)
    assert COMPRESSORS[name].__name__ in line
    assert "COMPRESSORS" in line


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_removed_export_is_named(cls: type[Compressor]) -> None:
    name = cls.__name__
    (line,) = missing(exports=[e for e in fll.__all__ if e != name])
    assert line.startswith("fl_lowrank/__init__.py")
    assert name in line
    (line,) = missing(family_exports=[e for e in compressors.__all__ if e != name])
    assert line.startswith("compressors/__init__.py")
    assert name in line


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_removed_instance_is_named(cls: type[Compressor]) -> None:
    left = [c for c in INSTANCES if cls not in {type(p) for p in parts(c)}]
    assert f"tests/instances.py: no row for {cls.__name__}" in missing(instances=left)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_removed_golden_file_is_named(case: object) -> None:
    path = case.path  # type: ignore[attr-defined]
    left = [p for p in FOLDER.glob("*.json") if p.name != path.name]
    line = f"tests/golden: {path.name} is missing; run {COMMAND}"
    assert line in missing(golden=left)


@pytest.mark.parametrize("coding", Coding, ids=lambda coding: coding.name)
def test_a_coding_without_golden_file_is_named(coding: Coding) -> None:
    left = [
        path
        for path in FOLDER.glob("*.json")
        if coding not in seen([unpack(read(path).message)])[1]
    ]
    line = f"tests/golden: no field with coding {coding.name}"
    assert line in missing(golden=left)


def test_a_removed_law_is_named() -> None:
    (line,) = missing(laws=[*checks.LAWS[1:], *checks.STATISTICAL_LAWS])
    assert checks.LAWS[0].__name__ in line

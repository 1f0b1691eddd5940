"""What a package offers: ``__all__`` is sorted, complete and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("fl_lowrank", "clients", "strategies")
FILES = [p for name in LIBRARIES for p in sorted((ROOT / name).rglob("*.py"))]
PACKAGES = [p for p in FILES if p.name == "__init__.py"]


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listed(tree: ast.Module) -> list[str] | None:
    """The names in ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            (target, *_) = node.targets
            if isinstance(target, ast.Name) and target.id == "__all__":
                names = ast.literal_eval(node.value)
                assert isinstance(names, list)
                return names
    return None


def bound(tree: ast.Module) -> set[str]:
    """Public names that a package makes, or takes from its own modules."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def sort_key(name: str) -> tuple[int, str]:
    """As ruff sorts: constants, then classes, then the rest."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return (kind, name)


def export_faults(file: str, source: str, needed: bool) -> list[str]:
    """Give one line for each name that is missing, left over or out of order."""
    tree = ast.parse(source)
    names, found = listed(tree), bound(tree)
    if names is None:
        return [f"{file}: no __all__, but {min(found)}"] if needed and found else []
    faults = [f"{file}: {n} is not in __all__" for n in sorted(found - set(names))]
    if needed:
        faults += [
            f"{file}: __all__ names {n}, which is nowhere bound"
            for n in names
            if n not in found
        ]
    if names != sorted(set(names), key=sort_key):
        faults.append(f"{file}: __all__ is not sorted, or names something twice")
    return faults


def docstring_faults(file: str, source: str) -> list[str]:
    """Give one line for each public module, class or function without docstring."""
    tree = ast.parse(source)
    faults = [] if ast.get_docstring(tree) else [f"{file}: the module has no docstring"]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                faults.append(f"{file}:{node.lineno}: {prefix}{node.name} has none")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(tree.body, "")
    return faults


@pytest.mark.parametrize("path", PACKAGES, ids=where)
def test_all_of_a_package_is_exported(path: Path) -> None:
    source = path.read_text()
    faults = export_faults(where(path), source, needed=True)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", FILES, ids=where)
def test_everything_public_is_documented(path: Path) -> None:
    faults = docstring_faults(where(path), path.read_text())
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", LIBRARIES)
def test_exports_can_be_imported_and_explain_themselves(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__
    for export in package.__all__:
        value = getattr(package, export)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{export} has no docstring"


def test_a_fault_is_named() -> None:
    good = '"""Doc."""\nfrom .a import B, c\n__all__ = ["B", "c"]\n'
    assert export_faults("f.py", good, needed=True) == []
    (line,) = export_faults("f.py", good.replace('"B", ', ""), needed=True)
    assert line == "f.py: B is not in __all__"
    (line,) = export_faults("f.py", good.replace("B, c\n", "B\n"), needed=True)
    assert line == "f.py: __all__ names c, which is nowhere bound"
    (line,) = export_faults("f.py", good.replace('"B", "c"', '"c", "B"'), needed=True)
    assert "not sorted" in line
    (line,) = export_faults("f.py", good.partition("__all__")[0], needed=True)
    assert line == "f.py: no __all__, but B"
    assert docstring_faults("f.py", '"""Doc."""\nclass A:\n    """Doc."""\n') == []
    (line,) = docstring_faults("f.py", '"""Doc."""\nclass A:\n    pass\n')
    assert line == "f.py:2: A has none"
    (line,) = docstring_faults(
        "f.py", '"""D."""\nclass A:\n    """D."""\n    def b(self): ...\n'
    )
    assert line == "f.py:4: A.b has none"

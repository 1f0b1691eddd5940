"""Folders of simulations live as long as somebody uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from clients.homes import scratch
from clients.homes.cleaning import NUM_TRAININGS
from clients.homes.scratch import Scratch
from fl_lowrank.errors import SettingError

ROOT = Path(__file__).resolve().parents[2]


def fid(number: int) -> bytes:
    return bytes([number]) * 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def use(folder: Path) -> Path:
    (folder / "below").mkdir()
    (folder / "below" / "file").write_text("x")
    return folder


def test_the_last_one_who_leaves_removes_the_folder(root: Path) -> None:
    first, second = Scratch(root), Scratch(root)
    folder = use(first.folder(fid(1)))
    assert first.folder(fid(1)) == second.folder(fid(1)) == folder
    first.close()
    assert (folder / "below" / "file").exists()
    second.close()
    assert list(root.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_by_the_next(root: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from clients.homes.scratch import Scratch\n"
        "folder = Scratch(pathlib.Path(sys.argv[1])).folder(b'k' * 16)\n"
        "(folder / 'file').write_text('x')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(root)]
    killed = subprocess.run(command, env=environment, check=False, timeout=100)
    assert killed.returncode == -9
    left = root / (b"k" * 16).hex()
    assert (left / "file").exists()
    (root / f"{left.name}-0123abcd").mkdir()  # killed while it removed
    (root / "notes").mkdir()
    mine = Scratch(root)
    mine.folder(fid(1))
    assert {p.name for p in root.iterdir()} == {"notes", fid(1).hex()}
    mine.close()


def test_folders_in_use_are_not_swept(root: Path) -> None:
    first, second = Scratch(root), Scratch(root)
    folder = use(first.folder(fid(1)))
    second.folder(fid(2))
    assert (folder / "below" / "file").exists()
    first.close()
    assert second.folder(fid(2)).exists()
    second.close()


def test_a_process_holds_its_last_trainings(root: Path) -> None:
    mine = Scratch(root)
    folders = [mine.folder(fid(i)) for i in range(NUM_TRAININGS + 1)]
    assert [f.exists() for f in folders] == [False, *[True] * NUM_TRAININGS]
    mine.close()
    assert list(root.iterdir()) == []
    again = mine.folder(fid(1))
    assert again.exists()
    mine.close()


def test_a_forked_child_neither_removes_nor_trusts_its_parents_locks(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Scratch(root)
    folder = use(mine.folder(fid(1)))
    held = dict(mine._held)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        mine.close()
        assert (folder / "below").exists()
        assert mine.folder(fid(1)) == folder
        assert mine._held[folder] != held[folder]
    mine._pid = os.getpid()
    mine.close()
    assert folder.exists()  # the parent still has it
    os.close(held[folder])


def test_a_folder_that_others_could_write_to_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(SettingError, match="drwxrwxrwx"):
        Scratch(root).folder(fid(1))
    root.rmdir()
    (root.parent / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(root.parent / "elsewhere")
    with pytest.raises(SettingError, match="lrwxrwxrwx"):
        Scratch(root).folder(fid(1))


def test_the_default_is_a_disk_and_not_a_part_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"fl-lowrank-{os.geteuid()}"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch._default_root() == tmp_path / name
    monkeypatch.delenv("TMPDIR")
    assert scratch._default_root() == Path("/var/tmp") / name
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert scratch._default_root() == tmp_path / name

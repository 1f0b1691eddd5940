"""Which home a client has if its app does not say, and that the server never does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from clients import CompressionMod, ContextHome, FileHome, storage
from clients.homes import choice, choose
from clients.homes.scratch import Scratch
from fl_lowrank.errors import SettingError
from tests.clients.memories import FID, FULL, context
from tests.clients.test_mod import Client, message, request

SMALL, LARGE = 1_000_000, 1_000_001


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing is set."""
    for name in (choice.VARIABLE, "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(choice, "SCRATCH", Scratch(tmp_path / "scratch"))


def deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-clientapp", "--insecure"])


def folder_of(home: object) -> Path:
    assert isinstance(home, FileHome)
    return home.folder


def with_config(**config: str) -> Context:
    named = {key.replace("_", "-"): value for key, value in config.items()}
    return Context(1, 7, {"partition-id": 0, **named}, RecordDict(), {})


def test_simulations_keep_small_memories_in_the_context(tmp_path: Path) -> None:
    assert isinstance(choose(context(0), FID, SMALL), ContextHome)
    assert not (tmp_path / "scratch").exists()


def test_simulations_keep_large_memories_in_files_of_their_own(tmp_path: Path) -> None:
    home = choose(context(0), FID, LARGE)
    assert folder_of(home) == tmp_path / "scratch" / FID.hex()
    assert isinstance(home, FileHome)
    assert not home.durable
    choice.SCRATCH.close()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("partition", [None, 0])
@pytest.mark.parametrize("num_bytes", [SMALL, LARGE])
def test_deployed_clients_keep_files(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    partition: int | None,
    num_bytes: int,
) -> None:
    deploy(monkeypatch)
    home = choose(context(partition), FID, num_bytes)
    assert folder_of(home) == tmp_path / "user/.local/state/fl-lowrank"
    assert isinstance(home, FileHome)
    assert home.durable
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home = choose(context(partition), FID, num_bytes)
    assert folder_of(home) == tmp_path / "state/fl-lowrank"
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    home = choose(context(partition), FID, num_bytes)
    assert folder_of(home) == tmp_path / "user/.local/state/fl-lowrank"


@pytest.mark.parametrize("deployed", [False, True])
def test_who_runs_the_node_comes_first(
    monkeypatch: pytest.MonkeyPatch, deployed: bool
) -> None:
    if deployed:
        deploy(monkeypatch)
    monkeypatch.setenv("FL_LOWRANK_MEMORY_DIR", "/by/environment")
    assert folder_of(choose(context(), FID, 8)) == Path("/by/environment")
    here = with_config(fl_lowrank_memory_dir="/by/config")
    assert folder_of(choose(here, FID, 8)) == Path("/by/config")
    with pytest.raises(SettingError, match="expected an absolute path"):
        choose(with_config(fl_lowrank_memory_dir="here"), FID, 8)


def test_a_user_without_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(monkeypatch)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SettingError, match="FL_LOWRANK_MEMORY_DIR"):
        choose(context(), FID, 8)


def test_the_mod_asks_for_the_home_of_its_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = Client()
    client.serve(codec="*: topk(k=4)")
    assert storage.load(client.context) is not None
    monkeypatch.setattr(choice, "LARGE_BYTES", 64 * 4 - 1)
    client = Client()
    client.serve(codec="*: topk(k=4)")
    assert not client.context.state
    (found,) = (tmp_path / "scratch").glob("*/partition-3.memory/*.full")
    assert found.stat().st_size > 256
    monkeypatch.setattr(choice, "LARGE_BYTES", 64 * 4)
    client = Client()
    client.serve(codec="*: topk(k=4)")
    assert client.context.state


def test_an_argument_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FL_LOWRANK_MEMORY_DIR", str(tmp_path / "environment"))
    client = Client()
    client.mod = CompressionMod(memory=FileHome(tmp_path / "argument"))
    assert not client.serve(codec="*: topk(k=4)").has_error()
    assert {p.name for p in tmp_path.iterdir()} == {"argument"}
    client.mod = CompressionMod(memory=ContextHome())
    assert not client.serve(ticket=(1, 2), codec="*: topk(k=4)").has_error()
    assert {p.name for p in tmp_path.iterdir()} == {"argument"}
    assert client.context.state


def test_what_comes_with_the_run_names_no_path(tmp_path: Path) -> None:
    """Neither the run config nor the config of a message is looked at."""
    named = {"fl-lowrank-memory-dir": str(tmp_path / "named")}
    client = Client()
    client.context.run_config = dict(named)
    answer = client.answer(message(request().pack(), named))
    assert not answer.has_error()
    assert not (tmp_path / "named").exists()
    assert storage.load(client.context) is not None


def test_a_home_that_cannot_be_used_is_an_error_of_the_client_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    client = Client()
    client.mod = CompressionMod(memory=FileHome(tmp_path / "file"))
    answer = client.serve()
    assert answer.has_error()
    assert "expected a folder for files and locks" in answer.error.reason
    assert client.saw == []  # before an hour of training


def test_the_key_of_the_context_is_left_to_its_owner(tmp_path: Path) -> None:
    """A memory that the context still has is not looked at by a file's home."""
    client = Client()
    storage.save(client.context, FULL)
    client.mod = CompressionMod(memory=FileHome(tmp_path))
    assert not client.serve().has_error()

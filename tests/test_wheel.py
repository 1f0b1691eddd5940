"""The wheel in a stranger's app, which has folders ``clients`` and ``strategies`` too.

The wheel is built, installed into an environment that sees this one's dependencies but
not the repository, and used with one line for the mod and one for the wrapper, in a run
of Flower with Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from textwrap import dedent

import flwr
import pytest

from simulations.runner.superlink import CONNECTION, LocalSuperLink

ROOT = Path(__file__).resolve().parents[1]
DEPENDENCIES = Path(flwr.__file__).resolve().parents[1]

STRANGERS_APP = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "stranger"
        version = "1.0.0"
        dependencies = ["flwr"]
        [tool.flwr.app]
        publisher = "stranger"
        [tool.flwr.app.components]
        serverapp = "strategies.server_app:app"
        clientapp = "clients.client_app:app"
        [tool.flwr.app.config]
        out = ""
        """,
    "clients/__init__.py": 'OWNER = "stranger"\n',
    "strategies/__init__.py": 'OWNER = "stranger"\n',
    "clients/client_app.py": """
        import json, pathlib
        import numpy as np
        from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp

        import clients
        import fl_lowrank
        from fl_lowrank.clients import CompressionMod

        app = ClientApp(mods=[CompressionMod()])

        @app.train()
        def train(message, context):
            partition = int(context.node_config["partition-id"])
            w = message.content["arrays"]["w"].numpy()
            w = w + np.float32(partition + 1) * np.eye(20, dtype=np.float32)
            facts = [clients.OWNER, clients.__file__, fl_lowrank.__file__]
            out = pathlib.Path(context.run_config["out"], f"client-{partition}.json")
            out.write_text(json.dumps(facts))
            return Message(RecordDict({
                "arrays": ArrayRecord({"w": Array(w)}),
                "metrics": MetricRecord({"num-examples": 10}),
            }), reply_to=message)
        """,
    "strategies/server_app.py": """
        import json, pathlib
        import numpy as np
        from flwr.app import Array, ArrayRecord
        from flwr.serverapp import ServerApp
        from flwr.serverapp.strategy import FedAvg

        import fl_lowrank
        import strategies
        from fl_lowrank.strategies import Compressed

        app = ServerApp()

        @app.main()
        def main(grid, context):
            arrays = ArrayRecord({"w": Array(np.zeros((20, 20), np.float32))})
            strategy = FedAvg(fraction_evaluate=0.0)
            strategy = Compressed(strategy, uplink="powersgd(rank=20)")
            result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=2)
            facts = [strategies.OWNER, strategies.__file__, fl_lowrank.__file__]
            found = {
                "facts": facts,
                "w": result.arrays["w"].numpy().tolist(),
                "bytes_up": [r["bytes_up"] for r in strategy.ledger.rounds()],
            }
            out = pathlib.Path(context.run_config["out"], "server.json")
            out.write_text(json.dumps(found))
        """,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "build", *options], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def strangers_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel, and all else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True
    )
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, *install, str(wheel)], check=True)
    # Files of this kind are not read in folders that they name, so the repository,
    # which is installed here by one, stays invisible.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    # Flower starts its helpers by name.
    for command in entry_points(group="console_scripts"):
        if command.value.startswith("flwr."):
            call = f"from {command.module} import {command.attr}; {command.attr}()"
            script = folder / "bin" / command.name
            script.write_text(f"#!{python}\n{call}\n")
            script.chmod(0o755)
    return python


def test_it_holds_one_package_with_the_others_inside(wheel: Path) -> None:
    names = [PurePosixPath(n) for n in zipfile.ZipFile(wheel).namelist()]
    modules = {n for n in names if not n.parts[0].endswith(".dist-info")}
    assert {n.parts[0] for n in modules} == {"fl_lowrank"}
    expected = {
        PurePosixPath("fl_lowrank", *path.relative_to(ROOT / prefix).parts)
        if prefix == "fl_lowrank"
        else PurePosixPath("fl_lowrank", *path.relative_to(ROOT).parts)
        for prefix in ("fl_lowrank", "clients", "strategies")
        for path in (ROOT / prefix).rglob("*.py")
    }
    assert {n for n in modules if n.suffix == ".py"} == expected
    assert PurePosixPath("fl_lowrank/clients/mod.py") in modules
    assert PurePosixPath("fl_lowrank/strategies/compressed.py") in modules
    metadata = {n.name for n in names if n.parts[0].endswith(".dist-info")}
    assert {"METADATA", "LICENSE", "WHEEL", "RECORD"} <= metadata


def test_it_says_that_it_is_typed(wheel: Path) -> None:
    assert "fl_lowrank/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_names_in_the_readme_are_there(
    strangers_python: Path, tmp_path: Path
) -> None:
    code = """
        import fl_lowrank, fl_lowrank.clients, fl_lowrank.strategies, sys
        print(fl_lowrank.__file__)
        print(fl_lowrank.clients.CompressionMod, fl_lowrank.strategies.Compressed)
        assert not {"clients", "strategies", "simulations"} & set(sys.modules)
        try:
            import simulations
        except ModuleNotFoundError:
            print("alone")
        """
    done = subprocess.run(
        [strangers_python, "-c", dedent(code)],
        cwd=tmp_path,
        env={"PATH": str(strangers_python.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, names, alone = done.stdout.splitlines()
    assert Path(where).is_relative_to(strangers_python.parents[1])
    assert "fl_lowrank.clients.mod.CompressionMod" in names
    assert alone == "alone"


@pytest.mark.timeout(240)
def test_a_strangers_app_trains(
    strangers_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, out, log = tmp_path / "app", tmp_path / "out", tmp_path / "log.txt"
    out.mkdir()
    for name, text in STRANGERS_APP.items():
        file = app / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    monkeypatch.setattr(sys, "executable", str(strangers_python))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with LocalSuperLink(log) as link:
        flwr_run = link.start_flwr(
            "run",
            str(app),
            CONNECTION,
            "--stream",
            "--federation-config",
            "num-supernodes=2 client-resources-num-cpus=1 client-resources-num-gpus=0",
            "--run-config",
            f"out={json.dumps(str(out))}",
            log_path=log,
        )
        assert flwr_run.wait(200) == 0, log.read_text()[-3000:]
        status = link.last_run().get("status")
    assert status == "finished:completed", log.read_text()[-3000:]

    server = json.loads((out / "server.json").read_text())
    # Two rounds of the mean of I and 2 I, which rank 20 sends without loss.
    assert server["w"] == [
        [pytest.approx(3.0 * (i == j), abs=1e-4) for j in range(20)] for i in range(20)
    ]
    assert server["bytes_up"][0] > 0
    facts = [json.loads((out / f"client-{i}.json").read_text()) for i in (0, 1)]
    environment = strangers_python.parents[1]
    for owner, own_folder, library in [server["facts"], *facts]:
        assert owner == "stranger"
        assert not Path(own_folder).is_relative_to(ROOT)
        assert Path(library).is_relative_to(environment)

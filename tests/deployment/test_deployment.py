"""Real processes on the loopback: SuperLink and SuperNodes, as a user deploys them."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.runner.processes import marked_processes
from simulations.runner.superlink import CONNECTION
from tests.deployment.certificates import make_certificates, make_key
from tests.deployment.federation import REPOSITORY, Federation
from tests.deployment.scenario import NUM_NODES, check_what_is_left, two_nodes_die
from tests.simulations.runs import ROUNDED, decentralised_in_process

pytestmark = pytest.mark.timeout(1800)


def test_insecure(tmp_path: Path) -> None:
    federation = Federation(tmp_path, NUM_NODES)
    traffic = two_nodes_die(federation, tmp_path, {"feedback": "ef"})
    check_what_is_left(federation, traffic)
    returning = federation.nodes[0]
    assert len(set(returning.ids())) == 2  # another node id, the same client


@pytest.mark.slow
def test_with_tls_and_known_nodes(tmp_path: Path) -> None:
    ca = make_certificates(tmp_path)
    keys = [make_key(tmp_path / f"key-{i}") for i in range(NUM_NODES)]
    federation = Federation(
        tmp_path,
        NUM_NODES,
        link_options=(
            *("--ssl-ca-certfile", str(ca)),
            *("--ssl-certfile", str(tmp_path / "server.pem")),
            *("--ssl-keyfile", str(tmp_path / "server.key")),
            "--enable-supernode-auth",
        ),
        trust=f'root-certificates = "{ca}"',
        node_options=lambda i: (
            *("--root-certificates", str(ca)),
            *("--auth-supernode-private-key", str(keys[i])),
        ),
        before=[
            ("supernode", "register", str(key.with_suffix(".pub")), CONNECTION)
            for key in keys
        ],
    )
    # A round that waits for a node which is back under its id ends by this alone.
    config = {"feedback": "ef21", "timeout": 240.0}
    traffic = two_nodes_die(federation, tmp_path, config)
    check_what_is_left(federation, traffic)
    returning = federation.nodes[0]
    assert len(returning.ids()) == 2
    assert len(set(returning.ids())) == 1
    # Until the silence of the dead one was noticed, the new one was refused.
    assert "Failed to activate SuperNode" in returning.log_path.read_text("utf-8")


@pytest.mark.slow
def test_agents_without_a_centre(tmp_path: Path) -> None:
    text = (
        "--train-samples 240 --batch-size 8 --device cpu --model logistic "
        "--gamma 0.3 --compressor 'topk(fraction=0.2) >> natural()' --max-steps 6"
    )
    federation = Federation(tmp_path, 4)
    with federation:
        federation.start_nodes()
        federation.start_run(REPOSITORY, {"decentralised": text})
        status = federation.wait_for_end()
    assert not marked_processes(federation.link.mark)
    assert status == "finished:completed", federation.said()
    alone = decentralised_in_process(text).measure()
    (found,) = federation.results.read_rounds()
    same = alone.keys() - ROUNDED
    assert {k: found[k] for k in same} == {k: alone[k] for k in same}
    for key in ROUNDED:
        assert found[key] == pytest.approx(alone[key], rel=1e-4)
    print(found)

"""The cluster harness: restarts, failover, resharding, and the end of its processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness.cluster.cluster import Cluster
from harness.cluster.ports import Ports
from harness.errors import HarnessError
from tests.support.waiting import until_sync

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KEYS = [f"key-{number}" for number in range(30)]


def values(cluster: Cluster) -> list[bytes | None]:
    return [cluster.owner_of(key).client.get(key) for key in KEYS]


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_cluster_keeps_its_values_through_failover_and_resharding_and_is_removed() -> None:
    with Cluster() as cluster:
        for key in KEYS:
            cluster.owner_of(key).client.set(key, key)
        master = cluster.owner_of(KEYS[0])
        successor = cluster.fail_over(master)
        cluster.start_again()
        assert cluster.owner_of(KEYS[0]) == successor
        assert cluster.replicas_of(successor) == (master,)

        target = cluster.masters[0]
        cluster.move_slots({cluster.slot_of(key) for key in KEYS[:10]}, target)
        cluster.wait_ready()
        assert {cluster.owner_of(key) for key in KEYS[:10]} == {target}
        assert values(cluster) == [key.encode() for key in KEYS]
        folder, pids = master.folder.parent, [node.pid for node in cluster.nodes]

    assert all(ended(pid) for pid in pids)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nodes_end_with_the_program(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "harness.cluster", "--masters=1", "--replicas=0"]
    with Ports() as ports:
        (port,) = ports.reserve(1)
        with subprocess.Popen(
            ["env", f"TMPDIR={tmp_path}", *command, f"--port={port}"],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as program:
            assert program.stdout is not None
            greeting = [program.stdout.readline() for _ in range(3)]
            (node,) = psutil.Process(program.pid).children()
            program.send_signal(number)

    until_sync(lambda: ended(node.pid))
    assert greeting[0] == f"127.0.0.1:{port}  master\n"
    assert greeting[2] == f"samserve serve --set cache.shared.nodes=127.0.0.1:{port}\n"
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_is_reported_with_its_log() -> None:
    cluster = Cluster(masters=1, replicas=0, options={"no-such-option": "1"})

    with pytest.raises(HarnessError, match="no-such-option"):
        cluster.start()

    assert cluster.nodes == ()

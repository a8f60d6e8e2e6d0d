"""A Ray cluster of two nodes on this machine, in a process with ports and files of its own.

As a program, it starts the cluster and ends it when standard input ends: also if the test that
started it was killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from samserve.system.telemetry_off import turn_off_telemetry

# With one CPU, a node has one worker.
_NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
# A killed node is noticed sooner than after 15 s; a slow one still has 10 s for each check.
_CONFIG = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@dataclass(frozen=True)
class Cluster:
    """A running cluster; ``folder`` has all files of Ray."""

    address: str
    folder: Path
    _process: subprocess.Popen[str]

    def kill_second_node(self) -> None:
        """Kill all processes of the node that is not the head, and return when they have ended."""
        self._command("kill")

    def workers(self) -> list[dict[str, str]]:
        """Return the environment of each process that has a worker of `samserve annotate`."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [child.environ() for child in children if "MapWorker" in _title(child)]

    def _command(self, command: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "done"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run a cluster."""
    # The paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    command = [sys.executable, "-m", "tests.annotate.ray_cluster", str(folder)]
    log = folder.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin
    assert process.stdout
    try:
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        yield Cluster(address, folder, process)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
        log.unlink()
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: str) -> None:
    """Run a cluster until standard input ends."""
    turn_off_telemetry()
    # The command must set it for its workers.
    del os.environ["DO_NOT_TRACK"]  # noqa: TID251 - of the nodes
    from ray.cluster_utils import Cluster as RayCluster  # noqa: PLC0415 - reads the environment

    head = {**_NODE, "temp_dir": folder, "_system_config": _CONFIG}
    cluster: Any = RayCluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**_NODE)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])

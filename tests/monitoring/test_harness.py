"""Smoke tests of Prometheus and redis_exporter: they start, respond, and leave no files."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.program import DIRECT
from harness.prometheus.exporter import RedisExporter
from harness.prometheus.server import PrometheusServer
from harness.triton import processes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_prometheus_is_killed_and_leaves_no_files(folder: Path, tmp_path: Path) -> None:
    with PrometheusServer({}, log=tmp_path / "prometheus.log") as server:
        assert server.query("vector(7)")[0]["value"][1] == "7"
        with pytest.raises(HarnessError, match="parse error: unclosed left parenthesis"):
            server.query("sum(")
        process, pid = server._process, server.pid
        assert len(list(folder.iterdir())) == 1
        with pytest.raises(HarnessError, match="already running"):
            server.start()

    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert not processes.members(pid)
    assert list(folder.iterdir()) == []
    with pytest.raises(HarnessError, match=f"does not respond on {server.url}"):
        server.query("1")
    # Its data was in the temporary folder, its log was not.
    assert (tmp_path / "prometheus.log").exists()


def test_failed_start_reports_the_end_of_the_log(folder: Path, tmp_path: Path) -> None:
    rules = tmp_path / "bad.yml"
    rules.write_text("groups: [{name: bad, rules: [{record: a, expr: 'sum('}]}]")

    with pytest.raises(HarnessError, match=r"(?s)ended at start:.*unclosed left parenthesis"):
        PrometheusServer({}, rules=[rules]).start()

    assert list(folder.iterdir()) == []


def test_exporter_reports_whether_a_node_is_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A master needs two seconds to serve its slots; a node responds at once.
    monkeypatch.setattr(Cluster, "wait_ready", lambda _: None)
    with Cluster(masters=1, replicas=0) as cluster:
        (node,) = cluster.nodes
        with RedisExporter(node.address) as exporter:
            up = scraped(exporter)
            node.kill()
            down = scraped(exporter)

    assert "\nredis_up 1\n" in up
    assert "\nredis_up 0\n" in down
    assert list(folder.iterdir()) == []


def scraped(exporter: RedisExporter) -> str:
    with DIRECT.open(f"{exporter.url}/metrics", timeout=60) as response:
        text: str = response.read().decode()
        return text

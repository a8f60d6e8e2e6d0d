"""Smoke tests of the real Prometheus and its exporter: they start, answer, and leave nothing."""

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
    """Where temporary files are, of which nothing may remain."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_it_ends_by_force_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with PrometheusServer({}, log=tmp_path / "prometheus.log") as server:
        assert server.query("vector(7)")[0]["value"][1] == "7"
        with pytest.raises(HarnessError, match="parse error: unclosed left parenthesis"):
            server.query("sum(")
        process, pid = server._process, server.pid
        assert len(list(folder.iterdir())) == 1
        with pytest.raises(HarnessError, match="runs already"):
            server.start()

    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert not processes.members(pid)
    assert list(folder.iterdir()) == []
    with pytest.raises(HarnessError, match=f"does not answer on {server.url}"):
        server.query("1")
    # Its history was in the folder; the log was not.
    assert (tmp_path / "prometheus.log").exists()


def test_a_failed_start_has_the_end_of_the_log(folder: Path, tmp_path: Path) -> None:
    rules = tmp_path / "bad.yml"
    rules.write_text("groups: [{name: bad, rules: [{record: a, expr: 'sum('}]}]")

    with pytest.raises(HarnessError, match=r"(?s)ended at start:.*unclosed left parenthesis"):
        PrometheusServer({}, rules=[rules]).start()

    assert list(folder.iterdir()) == []


def test_the_exporter_tells_whether_a_node_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes a master two seconds to serve its slots; a node answers at once.
    monkeypatch.setattr(Cluster, "wait_ready", lambda _: None)
    with Cluster(masters=1, replicas=0) as cluster:
        (node,) = cluster.nodes
        with RedisExporter(node.address) as exporter:
            there = scraped(exporter)
            node.kill()
            away = scraped(exporter)

    assert "\nredis_up 1\n" in there
    assert "\nredis_up 0\n" in away
    assert list(folder.iterdir()) == []


def scraped(exporter: RedisExporter) -> str:
    with DIRECT.open(f"{exporter.url}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
        return text

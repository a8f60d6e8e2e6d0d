"""Smoke tests of the real Prometheus and its exporter: they start, answer, and leave nothing."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.program import DIRECT, HOST
from harness.prometheus.exporter import RedisExporter
from harness.prometheus.server import PrometheusServer, QueryError
from harness.triton import processes
from tests.support.waiting import until_sync as until

TRACE = "0af7651916cd43dd8448eb211c80319c"
FRUIT = f"""\
# TYPE fruit counter
fruit_total{{kind="pear"}} 3 # {{trace_id="{TRACE}"}} 1
# EOF
"""
RULES = """\
groups:
  - name: fruit
    rules:
      - record: kind:fruit:twice
        expr: 2 * fruit_total
      - alert: Plenty
        expr: fruit_total > 2
"""


class _Fruit(BaseHTTPRequestHandler):
    """What is scraped: a series with an exemplar."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0")
        self.end_headers()
        self.wfile.write(FRUIT.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fruit() -> Iterator[str]:
    """Address of something that can be scraped."""
    with ThreadingHTTPServer((HOST, 0), _Fruit) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"{HOST}:{server.server_port}"
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are, of which nothing may remain."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow  # Prometheus scrapes for the first time five seconds after its start
def test_what_was_scraped_can_be_queried(fruit: str, tmp_path: Path) -> None:
    rules = tmp_path / "fruit.yml"
    rules.write_text(RULES)
    with PrometheusServer({"fruit": [fruit, f"{HOST}:1"]}, rules=[rules], interval_s=0.1) as server:
        until(lambda: server.alerts() and all(rule["health"] == "ok" for rule in server.rules()))
        until(lambda: all(target["health"] != "unknown" for target in server.targets()))
        health = {each["labels"]["instance"]: each["health"] for each in server.targets()}
        (twice,) = server.query("kind:fruit:twice")
        (scalar,) = server.query("1 + 1", time=7.0)
        (line,) = server.query_range("vector(7)", 1000, 1030, 15)
        found = server.series('{__name__=~"fruit.+"}')
        (series,) = server.exemplars("fruit_total", time.time() - 600, time.time() + 60)
        with pytest.raises(QueryError, match="parse error: unclosed left parenthesis"):
            server.query("sum(")

    assert health == {fruit: "up", f"{HOST}:1": "down"}
    assert (twice["metric"]["namespace"], twice["value"][1]) == ("samserve", "6")
    assert scalar["value"] == [7, "2"]
    assert line["values"] == [[at, "7"] for at in (1000, 1015, 1030)]
    assert [each["kind"] for each in found] == ["pear"]
    assert {each["labels"]["trace_id"] for each in series["exemplars"]} == {TRACE}


def test_it_ends_by_force_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with PrometheusServer({}, log=tmp_path / "prometheus.log") as server:
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

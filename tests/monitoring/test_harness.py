"""The harness itself: the real Prometheus and its exporter, what they answer, and how they end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.program import DIRECT, HOST
from harness.prometheus import programs
from harness.prometheus.errors import QueryError
from harness.prometheus.exporter import RedisExporter
from harness.prometheus.server import PrometheusServer, get
from harness.triton import processes
from tests.support.waiting import until_sync as until

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
TRACE = "0af7651916cd43dd8448eb211c80319c"
FRUIT = f"""\
# TYPE fruit counter
fruit_total{{kind="pear"}} 3 # {{trace_id="{TRACE}"}} 1
fruit_total{{kind="plum"}} 1
# EOF
"""
RULES = """\
groups:
  - name: fruit
    rules:
      - record: kind:fruit:twice
        expr: 2 * fruit_total
      - record: no:match
        expr: fruit_total * on() fruit_total
      - alert: Plenty
        expr: fruit_total > 2
        labels: {severity: info}
      - alert: Soon
        expr: fruit_total < 2
        for: 1h
"""
NOBODY = f"{HOST}:1"


class _Fruit(BaseHTTPRequestHandler):
    """What is scraped: two series, one with an exemplar."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0")
        self.end_headers()
        self.wfile.write(FRUIT.encode())

    def log_message(self, *_: object) -> None:
        pass


class _Site(ThreadingHTTPServer):
    """Does not keep pytest alive, whatever fails."""

    daemon_threads = True


@pytest.fixture(scope="module")
def fruit() -> Iterator[str]:
    """Address of something that can be scraped."""
    with _Site((HOST, 0), _Fruit) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
        thread.start()
        try:
            yield f"{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def prometheus(fruit: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """One that has scraped the fruit and has evaluated rules; no test may end it.

    Prometheus scrapes for the first time five seconds after its start, hence the marks below.
    """
    rules = tmp_path_factory.mktemp("rules") / "fruit.yml"
    rules.write_text(RULES)
    labels = {"namespace": "orchard"}
    jobs = {"fruit": [fruit, NOBODY]}
    with PrometheusServer(jobs, rules=[rules], labels=labels, interval_s=0.1) as server:
        until(lambda: server.query("kind:fruit:twice"))
        until(lambda: all(target["health"] != "unknown" for target in server.targets()))
        until(lambda: all(rule["health"] != "unknown" for rule in server.rules()))
        yield server


def gone(pid: int) -> bool:
    return not processes.members(pid) and not Path(f"/proc/{pid}").exists()


def fruit_of(prometheus: PrometheusServer, kind: str, expr: str = "fruit_total") -> str:
    """The value of the one series of that kind."""
    (series,) = [each for each in prometheus.query(expr) if each["metric"]["kind"] == kind]
    return str(series["value"][1])


@pytest.mark.slow
def test_what_was_scraped_can_be_asked_for(prometheus: PrometheusServer, fruit: str) -> None:
    (series,) = prometheus.query('fruit_total{kind="pear"}')
    assert series["metric"] == {
        "__name__": "fruit_total",
        "kind": "pear",
        "job": "fruit",
        "instance": fruit,
        "namespace": "orchard",
    }
    assert fruit_of(prometheus, "pear") == "3"
    assert fruit_of(prometheus, "plum", "kind:fruit:twice") == "2"
    (scalar,) = prometheus.query("1 + 1", time=7.0)
    assert (scalar["metric"], scalar["value"]) == ({}, [7, "2"])
    (series,) = prometheus.query_range("vector(7)", 1000, 1060, 15)
    assert series["values"] == [[at, "7"] for at in (1000, 1015, 1030, 1045, 1060)]
    found = prometheus.series('{__name__=~"fruit.+", kind!="plum"}')
    assert [(each["__name__"], each["kind"]) for each in found] == [("fruit_total", "pear")]
    now = time.time()
    (series,) = prometheus.exemplars("fruit_total", now - 600, now + 60)
    assert series["seriesLabels"]["kind"] == "pear"
    assert {each["labels"]["trace_id"] for each in series["exemplars"]} == {TRACE}


@pytest.mark.slow
def test_targets_rules_and_alerts_have_their_state(
    prometheus: PrometheusServer, fruit: str
) -> None:
    targets = {each["labels"]["instance"]: each for each in prometheus.targets()}
    assert (targets[fruit]["health"], targets[fruit]["lastError"]) == ("up", "")
    assert targets[NOBODY]["health"] == "down"
    assert "refused" in targets[NOBODY]["lastError"]

    rules = {each["name"]: each for each in prometheus.rules()}
    health = {name: rule["health"] for name, rule in rules.items()}
    assert health == {"kind:fruit:twice": "ok", "no:match": "err", "Plenty": "ok", "Soon": "ok"}
    assert "duplicate series" in rules["no:match"]["lastError"]

    until(lambda: len(prometheus.alerts()) == 2)
    alerts = {each["labels"]["alertname"]: each for each in prometheus.alerts()}
    assert {name: alert["state"] for name, alert in alerts.items()} == {
        "Plenty": "firing",
        "Soon": "pending",
    }
    assert alerts["Plenty"]["labels"].items() >= {"kind": "pear", "severity": "info"}.items()


@pytest.mark.slow
def test_a_query_that_is_refused_has_prometheus_s_own_text(prometheus: PrometheusServer) -> None:
    with pytest.raises(QueryError, match="parse error: unclosed left parenthesis"):
        prometheus.query("sum(")
    with pytest.raises(QueryError, match="found duplicate series for the match group"):
        prometheus.query_range("fruit_total * on() fruit_total", time.time() - 1, time.time(), 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are, of which nothing may be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_it_ends_by_force_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    server = PrometheusServer({}, log=tmp_path / "prometheus.log")
    with pytest.raises(HarnessError, match="not running"):
        _ = server.pid
    with server:
        process, url = server._process, server.url
        pid = server.pid
        assert [each.name.startswith("samserve-prometheus-") for each in folder.iterdir()] == [True]
        with pytest.raises(HarnessError, match="runs already"):
            server.start()

    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert gone(pid)
    assert list(folder.iterdir()) == []
    with pytest.raises(HarnessError, match=f"does not answer on {url}"):
        server.query("1")
    with pytest.raises(HarnessError, match="not running"):
        server.wait()
    # Its history was in the folder; the log was not.
    assert (tmp_path / "prometheus.log").exists()


def test_bad_rules_are_told_by_the_end_of_the_log(folder: Path, tmp_path: Path) -> None:
    rules, log = tmp_path / "bad.yml", tmp_path / "prometheus.log"
    rules.write_text("groups: [{name: bad, rules: [{record: a, expr: 'sum('}]}]")
    log.write_text("of those before\n")

    with pytest.raises(HarnessError) as told:
        PrometheusServer({}, rules=[rules], log=log).start()

    text = str(told.value)
    assert text.startswith("prometheus ended at start:\n")
    assert str(rules) in text
    assert "unclosed left parenthesis" in text
    assert "of those before" not in text
    assert list(folder.iterdir()) == []


def test_a_port_that_was_asked_for_and_is_taken_is_told(folder: Path) -> None:
    # Nothing listens there, so that no answer has to be waited for.
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        server = PrometheusServer({}, port=taken.getsockname()[1])
        with pytest.raises(HarnessError, match="already in use"):
            server.start()

    assert list(folder.iterdir()) == []


def test_a_program_that_is_missing_is_told_with_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "BINARIES", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    with pytest.raises(HarnessError, match=r"no prometheus was found: make (\S+)") as told:
        PrometheusServer({}).start()

    target = str(told.value).rpartition(" ")[2].replace(".venv-prometheus", "$(PROMETHEUS)")
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    assert list(folder.iterdir()) == []


def test_the_exporter_tells_whether_a_node_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes a master two seconds to serve its slots; a node answers at once.
    monkeypatch.setattr(Cluster, "wait_ready", lambda _: None)
    with Cluster(masters=1, replicas=0) as cluster:
        (node,) = cluster.nodes
        with RedisExporter(node.address) as exporter:
            pid = exporter.pid
            there = scraped(exporter)
            node.kill()
            away = scraped(exporter)

    assert there["redis_up"] == 1
    assert there["redis_memory_max_bytes"] == 256 << 20
    assert away["redis_up"] == 0
    assert gone(pid)
    assert list(folder.iterdir()) == []


def scraped(exporter: RedisExporter) -> dict[str, float]:
    """What it tells without labels."""
    with DIRECT.open(f"{exporter.url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def test_the_command_says_where_it_answers_and_ends_with_ctrl_c(
    folder: Path, tmp_path: Path, fruit: str
) -> None:
    rules, log = tmp_path / "fruit.yml", tmp_path / "command.log"
    rules.write_text(RULES)
    words = [f"--target=fruit={fruit}", f"--target=fruit={NOBODY}", f"--target=other={fruit}"]
    words += [f"--rules={rules}", "--interval=0.2", "--port=0"]
    command = ["env", f"TMPDIR={folder}", sys.executable, "-m", "harness.prometheus", *words]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, text=True
        ) as ours,
    ):
        try:
            assert ours.stdout is not None
            line = ours.stdout.readline()
            told = re.fullmatch(
                r"Prometheus answers on (http://127\.0\.0\.1:\d+); Ctrl-C ends it\.\n", line
            )
            assert told
            asked = get(told[1], "status/config")["yaml"]
            groups = get(told[1], "rules")["groups"]
            (pid,) = [int(each) for each in children(ours.pid)]
        finally:
            ours.send_signal(signal.SIGINT)
        rest = ours.stdout.read()

    jobs = yaml.safe_load(asked)["scrape_configs"]
    assert {each["job_name"]: each["static_configs"][0]["targets"] for each in jobs} == {
        "fruit": [fruit, NOBODY],
        "other": [fruit],
    }
    assert {each["scrape_interval"] for each in jobs} == {"200ms"}
    assert [group["file"] for group in groups] == [str(rules)]
    assert (rest, ours.returncode) == ("", 0)
    assert gone(pid)
    assert list(folder.iterdir()) == []
    assert "Traceback" not in log.read_text()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

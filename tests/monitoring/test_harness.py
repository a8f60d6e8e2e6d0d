"""The harness itself: the real Prometheus and its exporter, what they answer, and how they end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.program import DIRECT, HOST, Program
from harness.prometheus import programs
from harness.prometheus.errors import QueryError
from harness.prometheus.exporter import RedisExporter
from harness.prometheus.server import PrometheusServer, get
from harness.triton import processes
from harness.triton.ports import free_ports

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


@pytest.fixture(scope="module")
def fruit() -> Iterator[str]:
    """Address of something that can be scraped."""
    with ThreadingHTTPServer((HOST, 0), _Fruit) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL_S,))
        thread.start()
        yield f"{HOST}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def prometheus(fruit: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """One that has scraped the fruit and itself, and has evaluated rules; nobody may end it."""
    rules = tmp_path_factory.mktemp("rules") / "fruit.yml"
    rules.write_text(RULES)
    (port,) = free_ports(1)
    jobs = {"fruit": [fruit, NOBODY], "itself": [f"{HOST}:{port}"]}
    labels = {"namespace": "orchard"}
    with PrometheusServer(jobs, rules=[rules], labels=labels, interval_s=0.1, port=port) as server:
        until(lambda: server.query("kind:fruit:twice"))
        until(lambda: server.query('up{job="itself"} == 1'))
        until(lambda: all(target["health"] != "unknown" for target in server.targets()))
        until(lambda: all(rule["health"] != "unknown" for rule in server.rules()))
        yield server


def until(true: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def gone(pid: int) -> bool:
    return not processes.members(pid) and not Path(f"/proc/{pid}").exists()


def fruit_of(prometheus: PrometheusServer, kind: str, expr: str = "fruit_total") -> str:
    """The value of the one series of that kind."""
    (series,) = [each for each in prometheus.query(expr) if each["metric"]["kind"] == kind]
    return str(series["value"][1])


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
    assert prometheus.query("prometheus_build_info")
    assert prometheus.query("fruit_total", time=1.0) == []
    (scalar,) = prometheus.query("1 + 1", time=7.0)
    assert (scalar["metric"], scalar["value"]) == ({}, [7, "2"])


def test_a_range_has_a_value_for_each_step(prometheus: PrometheusServer) -> None:
    (series,) = prometheus.query_range("vector(7)", 1000, 1060, 15)
    now = time.time()
    scraped = prometheus.query_range("fruit_total", now - 5, now, 0.5)

    assert series["values"] == [[at, "7"] for at in (1000, 1015, 1030, 1045, 1060)]
    assert {each["metric"]["kind"] for each in scraped} == {"pear", "plum"}


def test_series_are_found_by_a_selector(prometheus: PrometheusServer) -> None:
    found = prometheus.series('{__name__=~"fruit.+", kind!="plum"}')

    assert [(each["__name__"], each["kind"]) for each in found] == [("fruit_total", "pear")]
    assert prometheus.series('{job="nobody"}') == []


def test_targets_say_what_is_wrong(prometheus: PrometheusServer, fruit: str) -> None:
    targets = {each["labels"]["instance"]: each for each in prometheus.targets()}

    assert (targets[fruit]["health"], targets[fruit]["lastError"]) == ("up", "")
    assert targets[NOBODY]["health"] == "down"
    assert "refused" in targets[NOBODY]["lastError"]
    assert len(targets) == 3


def test_rules_say_what_is_wrong(prometheus: PrometheusServer) -> None:
    rules = {each["name"]: each for each in prometheus.rules()}

    health = {name: rule["health"] for name, rule in rules.items()}
    assert health == {"kind:fruit:twice": "ok", "no:match": "err", "Plenty": "ok", "Soon": "ok"}
    assert "duplicate series" in rules["no:match"]["lastError"]


def test_alerts_are_pending_or_firing(prometheus: PrometheusServer) -> None:
    until(lambda: len(prometheus.alerts()) == 2)

    alerts = {each["labels"]["alertname"]: each for each in prometheus.alerts()}
    assert {name: alert["state"] for name, alert in alerts.items()} == {
        "Plenty": "firing",
        "Soon": "pending",
    }
    assert alerts["Plenty"]["labels"].items() >= {"kind": "pear", "severity": "info"}.items()


def test_exemplars_are_kept(prometheus: PrometheusServer) -> None:
    now = time.time()
    (series,) = prometheus.exemplars("fruit_total", now - 600, now + 60)

    assert series["seriesLabels"]["kind"] == "pear"
    assert {each["labels"]["trace_id"] for each in series["exemplars"]} == {TRACE}
    assert prometheus.exemplars("fruit_total", 1, 2) == []


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ("sum(", "parse error: unclosed left parenthesis"),
        ("no_such_function(fruit_total)", 'unknown function with name "no_such_function"'),
        ("fruit_total * on() fruit_total", "found duplicate series for the match group"),
    ],
)
def test_a_query_that_is_refused_has_prometheus_s_own_text(
    prometheus: PrometheusServer, expr: str, text: str
) -> None:
    with pytest.raises(QueryError) as at_once:
        prometheus.query(expr)
    with pytest.raises(QueryError) as over_time:
        prometheus.query_range(expr, time.time() - 1, time.time(), 1)

    assert text in str(at_once.value)
    assert text in str(over_time.value)


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


@pytest.mark.parametrize("kept", [True, False])
def test_bad_rules_are_told_by_the_end_of_the_log(kept: bool, folder: Path, tmp_path: Path) -> None:
    rules, log = tmp_path / "bad.yml", tmp_path / "prometheus.log"
    rules.write_text("groups: [{name: bad, rules: [{record: a, expr: 'sum('}]}]")
    log.write_text("of those before\n")
    server = PrometheusServer({}, rules=[rules], log=log if kept else None)

    with pytest.raises(HarnessError) as told:
        server.start()

    text = str(told.value)
    assert text.startswith("prometheus ended at start:\n")
    assert str(rules) in text
    assert "unclosed left parenthesis" in text
    assert "of those before" not in text
    assert ("unclosed" in log.read_text()) == kept
    assert list(folder.iterdir()) == []
    with pytest.raises(HarnessError, match="not running"):
        _ = server.pid


def test_a_port_that_was_asked_for_and_is_taken_is_told(folder: Path) -> None:
    # Nobody listens, so that nobody has to be waited for.
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        server = PrometheusServer({}, port=taken.getsockname()[1])
        with pytest.raises(HarnessError, match="already in use"):
            server.start()

    assert list(folder.iterdir()) == []


class _Late(Program):
    """A program that takes a moment to find out that it cannot have its port."""

    _name = "late"
    _ready_path = "/"

    def _command(self, folder: Path) -> list[str]:
        return ["sh", "-c", "sleep 0.5; echo address already in use; exit 1"]


def test_who_has_the_port_is_not_taken_for_the_program(folder: Path, fruit: str) -> None:
    port = int(fruit.rpartition(":")[2])

    with pytest.raises(HarnessError, match="already in use"), _Late(port=port, log=None):
        pass


@pytest.mark.parametrize(
    "program", [PrometheusServer({}), RedisExporter(NOBODY)], ids=["prometheus", "redis_exporter"]
)
def test_a_program_that_is_missing_is_told_with_how_to_get_it(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "BINARIES", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    with pytest.raises(HarnessError, match=rf"no {program._name} was found: make (\S+)") as told:
        program.start()

    target = str(told.value).rpartition(" ")[2].replace(".venv-prometheus", "$(PROMETHEUS)")
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    assert list(folder.iterdir()) == []


def test_what_make_got_comes_before_what_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "BINARIES", tmp_path / "made")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    found = []
    for place in ("path", "made"):
        program = tmp_path / place / "prometheus"
        program.parent.mkdir()
        program.touch(0o755)
        found.append(programs.find("prometheus"))

    assert found == [str(tmp_path / place / "prometheus") for place in ("path", "made")]


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
    with DIRECT.open(f"{exporter.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


@contextmanager
def command(folder: Path, *words: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """Run the harness as a command with its temporary files in a folder, and end it."""
    with subprocess.Popen(
        ["env", f"TMPDIR={folder}", sys.executable, "-m", "harness.prometheus", *words],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        **streams,
    ) as ours:
        try:
            yield ours
        finally:
            ours.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_answers_and_ends_with_ctrl_c(
    number: signal.Signals, folder: Path, tmp_path: Path, fruit: str
) -> None:
    rules, log = tmp_path / "fruit.yml", tmp_path / "command.log"
    rules.write_text(RULES)
    (port,) = free_ports(1)
    words = [f"--target=fruit={fruit}", f"--target=fruit={NOBODY}", f"--target=other={fruit}"]
    words += [f"--rules={rules}", "--interval=0.2", f"--port={port}"]
    with log.open("w") as stderr, command(folder, *words, stderr=stderr) as ours:
        assert ours.stdout is not None
        line = ours.stdout.readline()
        # Scraping begins five seconds later.
        asked = get(f"http://{HOST}:{port}", "status/config")["yaml"]
        groups = get(f"http://{HOST}:{port}", "rules")["groups"]
        (pid,) = [int(each) for each in children(ours.pid)]
        ours.send_signal(number)
        rest = ours.stdout.read()

    assert line == f"Prometheus answers on http://{HOST}:{port}; Ctrl-C ends it.\n"
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


def test_the_command_may_log_into_a_pipe_or_to_a_terminal(folder: Path) -> None:
    (port,) = free_ports(1)
    words = [f"--target=nobody={NOBODY}", f"--port={port}"]
    with command(folder, *words, stderr=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        assert ours.stdout.readline().startswith("Prometheus answers")


def test_the_command_tells_what_is_wrong_with_its_words(folder: Path, tmp_path: Path) -> None:
    with command(folder, "--target=without-address", stderr=subprocess.PIPE) as ours:
        _, errors = ours.communicate()

    assert ours.returncode == 2
    assert "'without-address' is not JOB=HOST:PORT" in errors
    assert "Traceback" not in errors

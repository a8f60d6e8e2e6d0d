"""`samserve serve --web`: its settings, the address that it prints, and what it keeps secret."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest
from samserve import app
from samserve.settings import Settings

from harness.otlp import Receiver
from tests.cli.conftest import FAKE, Command, Served, server_process
from tests.http.web_pages import LIST, SESSION, token_of, write_page
from tests.secret_leaks import secret
from tests.support.waiting import TIMEOUT_S


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of servers, which do not run."""
    found: list[Settings] = []

    async def stop() -> None:
        pass

    def serve(settings: Settings, show: object) -> Coroutine[Any, Any, None]:
        assert callable(show)
        found.append(settings)
        return stop()

    monkeypatch.setattr(app, "serve", serve)
    return found


PORTS = ("--port", "0", "--admin-port", "0")


def test_the_option_enables_what_the_page_needs(samserve: Command, loaded: list[Settings]) -> None:
    assert samserve("serve", "--web", *PORTS, "--http-port", "0", *FAKE).code == 0
    assert samserve("serve", *PORTS, *FAKE).code == 0

    web, plain = loaded
    assert (web.http.enabled, web.http.web_page, web.embedding_files.get_enabled) == (True,) * 3
    assert not web.embedding_files.put_enabled
    assert (plain.http.enabled, plain.http.web_page) == (False, False)
    assert not plain.embedding_files.get_enabled


@pytest.mark.parametrize("source", ["command line", "environment", "file"])
def test_embedding_files_stay_disabled_where_they_are(
    samserve: Command,
    loaded: list[Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
) -> None:
    flags: tuple[str, ...] = ()
    if source == "command line":
        flags = ("--set", "embedding_files.get_enabled=false")
    elif source == "environment":
        monkeypatch.setenv("SAMSERVE_EMBEDDING_FILES__GET_ENABLED", "false")
    else:
        config = tmp_path / "samserve.toml"
        config.write_text("[embedding_files]\nget_enabled = false\nupload_timeout_s = 7\n")
        flags = ("--config", str(config))
    samserve("serve", "--web", *PORTS, "--http-port", "0", *FAKE, *flags)

    files = loaded[0].embedding_files
    assert not files.get_enabled
    assert files.upload_timeout_s == (7 if source == "file" else 300)


def test_outside_of_loopback_credentials_are_required(samserve: Command) -> None:
    exposed = ("--set", "http.host=::", "--set", "server.allow_plaintext=true")
    result = samserve("serve", "--web", *PORTS, *FAKE, *exposed)

    assert result.code == 2
    assert "http.web_page: http.host :: is not loopback: set auth.api_keys_file" in result.error


def request(url: str, body: str, credential: str = "") -> tuple[int, str]:
    """Send JSON and return the status and the text of the response."""
    headers = {"content-type": "application/json"}
    if credential:
        headers["authorization"] = f"Bearer {credential}"
    try:
        sent = urllib.request.Request(url, body.encode(), headers)
        with urllib.request.urlopen(sent, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def read_address(served: Served) -> tuple[str, str]:
    """Read a line with an address; return the URL of the listener, and the token."""
    assert served.process.stdout is not None
    line = served.process.stdout.readline().rstrip("\n")
    assert line.startswith("Web page")
    parts = urlsplit(line.split()[-1])
    assert parts.path == "/"
    return f"{parts.scheme}://{parts.netloc}", token_of(line)


def begin(url: str, token: str) -> str:
    """Exchange a token; return the credential."""
    status, text = request(url + SESSION, json.dumps({"token": token}))
    assert status == 200
    return secret(str(json.loads(text)["credential"]))


def test_secrets_are_in_the_printed_addresses_only(tmp_path: Path) -> None:
    folder = ("--set", f"http.web_page_folder={write_page(tmp_path)}")
    with Receiver() as receiver:
        everything = (
            *("--set", "log.level=debug", "--set", "trace.sampling_ratio=1"),
            *("--set", f"trace.endpoint=http://{receiver.grpc_address}"),
        )
        with server_process("--web", "--http-port", "0", *folder, *everything) as served:
            url, token = read_address(served)
            assert url == json.loads(serving_line(served))["http"]
            credential = begin(url, token)
            _, another = read_address(served)
            errors = [
                request(url + SESSION, json.dumps({"token": token})),
                request(url + SESSION, json.dumps({"token": another})[:-1]),
                request(url + LIST, "{}", token),
                request(url + LIST, "{}", another),
                request(f"{url}{LIST}?token={token}", "{}", credential + "x"),
                request(url + LIST, '{"x": 1}', credential),
                request(url + "/nothing", "{}", credential),
            ]
            assert [status for status, _ in errors] == [401, 400, 401, 401, 401, 400, 404]
            assert request(url + LIST, "{}", credential)[0] == 200
            metrics = metrics_of(served)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait() == 0
            assert served.process.stdout is not None
            rest, log = served.process.stdout.read(), served.log.read_text()
        spans = "".join(str(span) for span in receiver.spans)

    assert rest == ""
    assert "SESSION_REQUIRED" in log
    assert "SESSION_TOKEN_INVALID" in log
    assert "samserve_http_refused_total" in metrics
    assert "ListModels" in spans
    for text in (log, metrics, spans, *(text for _, text in errors)):
        for each in (token, another, credential):
            assert not any(part in text for part in parts_of(each))


def parts_of(text: str) -> list[str]:
    """Return overlapping parts of a secret, each too long to be found by chance."""
    return [text[start : start + 12] for start in range(len(text) - 11)]


def serving_line(served: Served) -> str:
    return next(line for line in served.log.read_text().splitlines() if '"serving"' in line)


def metrics_of(served: Served) -> str:
    admin = json.loads(serving_line(served))["admin"]
    with urllib.request.urlopen(f"{admin}/metrics", timeout=TIMEOUT_S) as response:
        return str(response.read().decode())


def test_a_closed_output_does_not_disturb_the_server(tmp_path: Path) -> None:
    folder = ("--set", f"http.web_page_folder={write_page(tmp_path)}")
    with server_process("--web", "--http-port", "0", *folder) as served:
        url, token = read_address(served)
        assert served.process.stdout is not None
        served.process.stdout.close()
        served.process.stdout = None
        credential = begin(url, token)
        assert request(url + LIST, "{}", credential)[0] == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait() == 0
        log = served.log.read_text()

    assert "Traceback" not in log
    assert "internal error" not in log

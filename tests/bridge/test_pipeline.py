"""What all tools have in common: credentials, limits, deadlines, errors, log lines, metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from samserve.bridge.routing import Found, Routing
from samserve.bridge.tool import BridgeRequest, Reply, Route
from samserve.calls.status import Failure
from samserve.errors import EngineUnavailable
from samserve.settings import LogSettings
from samserve.telemetry import logs

from tests import sample_images
from tests.bridge.serving import X, body_of, bridged, call, click, point, shapes
from tests.http.wire import JSON, Response, connected
from tests.metric_values import total
from tests.secret_leaks import secret
from tests.security.credentials import KeyFile
from tests.support.engines import BrokenEngine, PausedEngine
from tests.support.waiting import until

FILE = sample_images.png(300, 400)
CLICK = click(FILE, point(100, 100))
PREDICT = f"{X}/v1/predict"


def tokens_file(path: Path, **credentials: str) -> Path:
    """Write a tokens file that maps tokens to credentials."""
    lines: list[str] = []
    for token, credential in credentials.items():
        digest = hashlib.sha256(token.encode()).hexdigest()
        lines += ["[[tokens]]", f'name = "{token[:9]}"', f'sha256 = "{digest}"']
        lines += [f'credential = "{credential}"']
    path.write_text("\n".join(lines))
    return path


def basic(pair: str) -> tuple[str, str]:
    return ("authorization", "Basic " + base64.b64encode(pair.encode()).decode())


async def test_tokens_of_tools_stand_for_credentials_of_samserve(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict")
    token = secret("tool_token_of_anna")
    tokens = tokens_file(tmp_path / "tokens.toml", **{token: key, "anna": key, "anna:": key})
    async with bridged(
        server={"auth": {"api_keys_file": keys.path}},
        tokens={"file": tokens},
        tls={"reload_interval_s": 0.05},
    ) as (bridge, _):
        for header in (
            ("token", token),
            ("authorization", f"Bearer {token}"),
            ("authorization", f"Token {token}"),
            basic(f"someone:{token}"),
            basic(f":{token}"),
            basic("anna:"),
        ):
            await shapes(bridge, CLICK, [header])
        for header in (
            ("token", key),
            ("token", ""),
            ("token", "t\xf6ken"),
            basic("anna:no"),
            ("authorization", "Basic !"),
            ("authorization", f"Digest {token}"),
        ):
            answer = await call(bridge, PREDICT, CLICK, [header])
            assert answer.status == 401, header
            assert token not in answer.body.decode()

        tokens.write_text("")
        await until(lambda: _is_rejected(bridge, token))


async def _is_rejected(bridge: object, token: str) -> bool:
    answer = await call(bridge, PREDICT, CLICK, [("token", token)])  # type: ignore[arg-type]
    return answer.status == 401


async def test_user_and_password_may_be_the_token(tmp_path: Path) -> None:
    tokens = tokens_file(tmp_path / "tokens.toml", **{"anna:secret": "any"})
    async with bridged(tokens={"file": tokens}) as (bridge, _):
        await shapes(bridge, CLICK, [basic("anna:secret")])


async def test_requests_without_a_token_have_the_default_credential(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    file = tmp_path / "credential"
    file.write_text(keys.add("acme", "embed", "predict") + "\n")
    server = {"auth": {"api_keys_file": keys.path}}
    async with bridged(server=server, tokens={"credential_file": file}) as (bridge, _):
        await shapes(bridge, CLICK)
        answer = await call(bridge, PREDICT, CLICK, [("token", "samserve_other")])

    assert answer.status == 401


async def test_credentials_are_verified_before_the_body_arrives(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    server = {"auth": {"api_keys_file": keys.path}}
    async with bridged(server=server) as (bridge, _), connected(bridge.address) as wire:
        wire.send(wire.head(PREDICT, [JSON, ("content-length", "60000000")]))
        answer = await wire.response()

    assert answer.status == 401
    assert body_of(answer)["success"] is False


async def test_a_revoked_key_is_rejected_although_it_was_verified(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict")
    server = {"auth": {"api_keys_file": keys.path}, "tls": {"reload_interval_s": 0.05}}
    async with bridged(server=server) as (bridge, _):
        await shapes(bridge, CLICK, [("token", key)])
        keys.clear()
        await until(lambda: _is_rejected(bridge, key))


@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_limit_is_rejected_in_the_form_of_the_tool(declared: bool) -> None:
    limits = {"max_request_bytes": 10_000}
    async with bridged(limits=limits) as (bridge, _), connected(bridge.address) as wire:
        if declared:
            answer = await wire.request(PREDICT, b"x" * 10_001, [JSON])
        else:
            wire.send(wire.head(PREDICT, [JSON, ("transfer-encoding", "chunked")]))
            wire.send(b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
            answer = await wire.response()

    assert answer.status == 400
    assert body_of(answer)["error"]["message"].endswith("limits.max_request_bytes is the maximum")


async def test_image_over_the_limit_is_rejected() -> None:
    async with bridged(limits={"max_image_bytes": len(FILE) - 1}) as (bridge, _):
        answer = await call(bridge, PREDICT, CLICK)

    assert answer.status == 400
    assert body_of(answer)["error"]["code"] == "DOWNLOAD_TOO_LARGE"


async def test_compressed_bodies_are_rejected() -> None:
    async with bridged() as (bridge, _):
        answer = await call(bridge, PREDICT, CLICK, [("content-encoding", "gzip")])

    assert (answer.status, body_of(answer)["error"]["code"]) == (400, "INVALID_ARGUMENT")


async def test_endless_body_ends_with_the_timeout() -> None:
    listener = {"receive_timeout_s": 0.2}
    async with bridged(listener=listener) as (bridge, _), connected(bridge.address) as wire:
        wire.send(wire.head(PREDICT, [JSON, ("content-length", "100")]) + b"{")
        answer = await wire.response()

    assert (answer.status, body_of(answer)["error"]["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_request_ends_with_its_deadline_and_so_does_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samserve.bridge.tools.x_anylabeling._DEADLINE_S", 0.3)
    async with bridged(PausedEngine()) as (bridge, gateway):
        answer = await call(bridge, PREDICT, CLICK)
        await until(lambda: total(gateway.metrics.registry, "samserve_inflight_requests") == 0)

    assert (answer.status, body_of(answer)["error"]["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_requests_over_the_limits_are_rejected_and_others_served_later() -> None:
    engine = PausedEngine()
    async with bridged(engine, limits={"max_concurrent_requests": 2}) as (bridge, _):
        waiting = [asyncio.create_task(shapes(bridge, CLICK)) for _ in range(2)]
        await until(lambda: bridge.metrics.in_flight("x_anylabeling").value == 2)
        await engine.waiting.wait()
        answer = await call(bridge, PREDICT, CLICK)
        engine.go.set()
        await asyncio.gather(*waiting)
        await shapes(bridge, CLICK)

    assert (answer.status, body_of(answer)["error"]["code"]) == (429, "OVERLOADED")
    assert answer.headers["retry-after"] == "1"


async def test_bytes_of_all_requests_are_limited_while_they_arrive() -> None:
    limit = 300_000
    async with bridged(limits={"max_in_flight_request_bytes": limit}) as (bridge, _):
        async with connected(bridge.address) as slow:
            slow.send(slow.head(PREDICT, [JSON, ("content-length", "400000")]) + b" " * 250_000)
            registry = bridge.metrics.registry
            await until(
                lambda: total(registry, "samserve_bridge_inflight_request_bytes") == 250_000
            )
            answer = await call(bridge, PREDICT, {"image": "x" * 100_000})
            assert (await call(bridge, PREDICT, {})).status == 400
        await until(lambda: total(registry, "samserve_bridge_inflight_request_bytes") == 0)
        # Alone, a request may be larger.
        assert await shapes(bridge, CLICK)

    assert (answer.status, body_of(answer)["error"]["code"]) == (429, "OVERLOADED")


async def test_client_that_disconnects_ends_its_work() -> None:
    engine = PausedEngine()
    async with bridged(engine) as (bridge, _):
        clicking = asyncio.create_task(shapes(bridge, CLICK))
        await engine.waiting.wait()
        clicking.cancel()
        await until(lambda: bridge.metrics.in_flight("x_anylabeling").value == 0)
        cancelled = total(
            bridge.metrics.registry, "samserve_bridge_requests_total", code="CANCELLED"
        )

    assert cancelled == 1


async def test_internal_errors_reveal_the_request_id_only() -> None:
    engine = BrokenEngine(RuntimeError("the secret cause"), decode=True)
    async with bridged(engine) as (bridge, _):
        answer = await call(bridge, PREDICT, CLICK, [("x-request-id", "click-1")])

    assert answer.status == 500
    assert answer.headers["x-request-id"] == "click-1"
    assert "secret cause" not in answer.body.decode()


async def test_outage_of_the_engine_is_shown_with_its_reason() -> None:
    engine = BrokenEngine(EngineUnavailable("triton is not reachable"), decode=True)
    async with bridged(engine) as (bridge, _):
        answer = await call(bridge, PREDICT, CLICK)

    assert (answer.status, body_of(answer)["error"]["code"]) == (503, "ENGINE_UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"


async def test_request_id_is_that_of_the_gateways_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(LogSettings(format="json"))
    async with bridged() as (bridge, _):
        answer = await call(bridge, PREDICT, CLICK, [("x-request-id", "click-2")])
        other = await call(bridge, PREDICT, CLICK)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if line.get("request_id") == "click-2"]

    assert answer.headers["x-request-id"] == "click-2"
    assert len(other.headers["x-request-id"]) == 32
    assert {line.get("method") or line.get("route") for line in lines} == {
        *("predict", "Embed", "Predict", "ListModels"),
    }
    (line,) = [line for line in lines if line.get("route")]
    assert (line["tool"], line["code"]) == ("x_anylabeling", "OK")
    assert int(line["received_bytes"]) > len(FILE)


async def test_requests_are_counted_by_tool_route_and_code() -> None:
    async with bridged() as (bridge, _):
        await shapes(bridge, CLICK)
        await call(bridge, PREDICT, {})
        registry = bridge.metrics.registry

    def count(**labels: str) -> float:
        return total(registry, "samserve_bridge_requests_total", route="predict", **labels)

    assert count(tool="x_anylabeling", code="OK") == 1
    assert count(tool="x_anylabeling", code="INVALID_ARGUMENT") == 1
    assert total(registry, "samserve_bridge_request_seconds_count", tool="x_anylabeling") == 2
    assert total(registry, "samserve_bridge_message_bytes_total", direction="received") > len(FILE)


async def test_unknown_paths_and_methods_are_answered_with_what_there_is() -> None:
    async with bridged() as (bridge, _):
        missing = await call(bridge, "/v1/predict", {})
        wrong = await call(bridge, PREDICT)

    assert missing.status == 404
    assert X in body_of(missing)["message"]
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("headers", "host", "reason"),
    [
        ([], "evil.example", "HOST_NOT_ALLOWED"),
        ([("origin", "https://evil.example")], None, "ORIGIN_NOT_ALLOWED"),
        ([("sec-fetch-site", "cross-site")], None, "ORIGIN_NOT_ALLOWED"),
    ],
)
async def test_requests_of_web_pages_are_refused(
    headers: list[tuple[str, str]], host: str | None, reason: str
) -> None:
    async with bridged() as (bridge, _), connected(bridge.address) as wire:
        answer: Response = await wire.request(PREDICT, b"{}", [JSON, *headers], host=host)
        refused = total(bridge.metrics.registry, "samserve_bridge_refused_total", reason=reason)

    assert (answer.status, refused) == (403, 1)
    assert "listener.allowed_" in body_of(answer)["message"]


async def test_requests_in_flight_are_completed_at_shutdown() -> None:
    engine = PausedEngine()
    async with bridged(engine) as (bridge, _):
        clicking = asyncio.create_task(shapes(bridge, CLICK))
        await engine.waiting.wait()
        asyncio.get_running_loop().call_later(0.05, engine.go.set)

    assert await clicking


class FourthTool:
    """A tool as a module of its own has it."""

    name = "fourth"

    def routes(self) -> Iterable[Route]:
        return (
            Route("folder", "GET", "/fourth/things/*", self._answer),
            Route("exact", "GET", "/fourth/things/first", self._answer, public=True),
            Route("post", "POST", "/fourth/things/first", self._answer),
        )

    def failure(self, failure: Failure) -> Reply:
        return Reply(failure.reason.encode(), 418, b"text/plain")

    async def _answer(self, request: BridgeRequest) -> Reply:
        return Reply(request.rest.encode())


def test_routes_are_exact_or_folders() -> None:
    routing = Routing([FourthTool()])

    def found(method: str, path: str) -> tuple[str, str]:
        match = routing.find(method, path)
        assert isinstance(match, Found)
        return match.route.name, match.rest

    assert found("GET", "/fourth/things/first") == ("exact", "")
    assert found("GET", "/fourth/things/a/b") == ("folder", "a/b")
    assert found("POST", "/fourth/things/first") == ("post", "")
    assert routing.find("PUT", "/fourth/things/first") == "GET, POST"
    assert routing.find("POST", "/fourth/things/other") == "GET"
    assert routing.find("GET", "/fourth") == ""
    with pytest.raises(ValueError, match="two tools"):
        Routing([FourthTool(), FourthTool()])


async def test_a_fourth_tool_is_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve.bridge.app.tools_of", lambda *_: [FourthTool()])
    async with bridged() as (bridge, _):
        answer = await call(bridge, "/fourth/things/seven")
        failed = await call(bridge, "/fourth/things/x", headers=[("authorization", "Digest x")])

    assert (answer.status, answer.body) == (200, b"seven")
    assert (failed.status, failed.body) == (418, b"UNAUTHENTICATED")

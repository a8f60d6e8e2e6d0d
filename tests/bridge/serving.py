"""A bridge in front of gateways in this process, and the requests of tools."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from samserve.app import Running, running
from samserve.bridge import app
from samserve.bridge.app import RunningBridge
from samserve.bridge.settings import BridgeSettings
from samserve.engines.base import Engine
from samserve.engines.fake import FakeEngine
from samserve.settings.loading import read

from tests.conftest import settings_with
from tests.http.wire import JSON, Headers, Response, connected
from tests.metric_values import total

X = "/x-anylabeling"
FREE_PORTS = {"port": 0, "admin_port": 0, "grace_period_s": 5.0}


def bridge_settings(*targets: str, **sections: dict[str, Any]) -> BridgeSettings:
    """Return settings with free ports; each further argument is a section."""
    listener = {**FREE_PORTS, **sections.pop("listener", {})}
    gateways = {"targets": ",".join(targets), **sections.pop("gateways", {})}
    return read(BridgeSettings, {"listener": listener, "gateways": gateways, **sections})


@asynccontextmanager
async def bridging(*targets: str, **sections: dict[str, Any]) -> AsyncIterator[RunningBridge]:
    """Run a bridge in front of the gateways at *targets*."""
    async with app.running(bridge_settings(*targets, **sections)) as bridge:
        yield bridge


@asynccontextmanager
async def bridged(
    engine: Engine | None = None,
    *,
    server: dict[str, dict[str, Any]] | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[RunningBridge, Running]]:
    """Run a bridge and its gateway; *server* are sections of the gateway's settings."""
    async with AsyncExitStack() as stack:
        settings = settings_with(**(server or {}))
        gateway = await stack.enter_async_context(running(settings, engine=engine or FakeEngine()))
        yield (
            await stack.enter_async_context(bridging(gateway.address, **sections)),
            gateway,
        )


def body_of(response: Response) -> Any:
    """Return the JSON of a response."""
    assert response.headers["content-type"] == "application/json"
    return json.loads(response.body)


async def call(
    bridge: RunningBridge,
    path: str,
    value: object = None,
    headers: Headers = (),
    *,
    method: str = "",
) -> Response:
    """Send a request with a JSON body, or a GET without one."""
    body = b"" if value is None else json.dumps(value).encode()
    async with connected(bridge.address) as wire:
        return await wire.request(
            path, body, [JSON, *headers], method=method or ("GET" if value is None else "POST")
        )


def data_url(file: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def point(x: int, y: int, label: int = 1) -> dict[str, Any]:
    return {"type": "point", "data": [x, y], "label": label}


def rectangle(*corners: float) -> dict[str, Any]:
    return {"type": "rectangle", "data": list(corners), "label": 1}


def click(file: bytes, *marks: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Return the body of a request of X-AnyLabeling."""
    given = {"epsilon_factor": 0.001, **params}
    if marks:
        given["marks"] = list(marks)
    return {"model": "", "image": data_url(file), "params": given}


async def shapes(
    bridge: RunningBridge, request: dict[str, Any], headers: Headers = ()
) -> list[dict[str, Any]]:
    """Return the shapes of an answer to X-AnyLabeling."""
    response = await call(bridge, f"{X}/v1/predict", request, headers)
    body = body_of(response)
    assert (response.status, body["success"]) == (200, True), body
    assert body["data"]["replace"] is False
    return list(body["data"]["shapes"])


def embeds(bridge: RunningBridge, outcome: str) -> float:
    """Return how many embeddings were found in this way."""
    return total(bridge.metrics.registry, "samserve_bridge_embeds_total", outcome=outcome)


def received_bytes(gateway: Running, method: str) -> float:
    """Return the bytes that a gateway has received in calls of a method."""
    return total(
        gateway.metrics.registry,
        "samserve_message_bytes_total",
        grpc_method=method,
        direction="received",
    )

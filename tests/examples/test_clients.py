"""The clients of `examples/` and a real server: the same for Node.js and for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.app import running

from tests.conftest import serving_models, settings_with
from tests.examples import expected
from tests.examples.browser import BrowserClient
from tests.examples.expected import (
    LARGE_PHOTO_TEXT,
    LONG_AUTOMASK,
    PHOTO,
    PHOTO_TEXT,
    handled,
    in_flight,
)
from tests.examples.node import NodeClient
from tests.metric_values import total
from tests.security.credentials import KeyFile, write_pem
from tests.support.engines import PausedEngine
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ExampleClient = NodeClient | BrowserClient


@pytest.fixture(params=["node", "browser"])
def client(request: pytest.FixtureRequest) -> ExampleClient:
    """Each client, with the same methods."""
    client: ExampleClient = request.getfixturevalue(request.param)
    return client


async def result_of(
    client: ExampleClient,
    name: str,
    target: str,
    options: dict[str, Any] | None = None,
    **args: Any,
) -> Any:
    """Run a scenario with the photo and return its result."""
    async with client.scenario(name, target, options, photo=PHOTO_TEXT, **args) as result:
        return result


async def test_masks_equal_those_of_the_python_client(client: ExampleClient) -> None:
    async with serving_models(**client.sections) as (service, _):
        target = client.target(service)
        predicted = await result_of(client, "predict", target, prompts=expected.PROMPT_ARGUMENTS)
        found = await result_of(client, "automask", target, parameters=expected.AUTOMASK_PARAMETERS)
        await expected.check_predictions(predicted, service)
        await expected.check_automask(found, service)


async def test_a_known_file_is_not_sent_again(client: ExampleClient) -> None:
    async with running(settings_with(**client.sections)) as service:
        result = await result_of(client, "embedTwice", client.target(service))
        received = total(
            service.metrics.registry,
            "samserve_message_bytes_total",
            grpc_method="Embed",
            direction="received",
        )

    assert (result["first"]["cached"], result["second"]["cached"]) == (False, True)
    assert result["first"]["id"] == result["second"]["id"]
    # The hash, the file, and the hash again.
    assert handled(service, "Embed") == 3
    assert len(PHOTO) < received < len(PHOTO) + 1000


@pytest.mark.parametrize("name", ["abortAutomask", "leaveAutomask"])
async def test_cancelled_automask_ends_on_the_server(client: ExampleClient, name: str) -> None:
    async with serving_models(**client.sections) as (service, _):
        scenario = client.scenario(
            name, client.target(service), photo=PHOTO_TEXT, parameters=LONG_AUTOMASK
        )
        # The client stays connected: the server is not notified by the end of the connection.
        async with scenario as result:
            await until(lambda: handled(service, "AutoMask") == 1)

            assert in_flight(service, "AutoMask") == 0
            assert handled(service, "AutoMask", grpc_code="CANCELLED") == 1
    assert result["usable"]
    if name == "abortAutomask":
        assert result["error"]["code"] == "CANCELLED"


async def test_unary_calls_are_cancelled(client: ExampleClient) -> None:
    engine = PausedEngine()
    async with running(settings_with(**client.sections), engine=engine) as service:
        scenario = client.scenario("abortUnary", client.target(service), photo=LARGE_PHOTO_TEXT)
        async with scenario as result:
            await until(lambda: in_flight(service, "Embed") == 0)
            assert handled(service, "Embed", grpc_code="DEADLINE_EXCEEDED") == 0

    assert (result["started"]["code"], result["before"]["code"]) == ("CANCELLED", "CANCELLED")
    assert result["usable"]


async def test_details_of_errors_are_decoded(client: ExampleClient) -> None:
    async with running(settings_with(**client.sections)) as service:
        result = await result_of(client, "errors", client.target(service))

    invalid = result["invalid"]
    assert (invalid["code"], invalid["reason"]) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert [field for field, _ in invalid["fields"]] == [
        "prompts[0].points[0].x",
        "prompts[0].points[1].y",
    ]
    assert "width of the image" in invalid["fields"][0][1]
    assert invalid["message"]
    assert (result["model"]["code"], result["model"]["reason"]) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    for missing in (result["embedding"], result["stream"]):
        assert (missing["code"], missing["reason"]) == ("NOT_FOUND", "EMBEDDING_NOT_FOUND")
        assert missing["requestId"] == missing["metadata"]["request_id"]
        assert missing["retryDelayMs"] is None
    assert result["sentAgain"] > 0


async def test_deadlines_end_calls(client: ExampleClient) -> None:
    engine = PausedEngine()
    async with running(settings_with(**client.sections), engine=engine) as service:
        result = await result_of(client, "deadlines", client.target(service))
        await until(lambda: in_flight(service, "Embed") + in_flight(service, "AutoMask") == 0)

    assert [result[kind]["code"] for kind in ("unary", "stream")] == ["DEADLINE_EXCEEDED"] * 2


def policy_of(folder: Path, rate: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a server with a quota of one call, refilled at a rate per second."""
    path = folder / "policy.toml"
    path.write_text(f"version = 1\n[quotas.default]\nrequests_per_s = {rate}\nburst = 1\n")
    return {"auth": {"policy_file": path}}


async def test_rejected_call_waits_as_the_server_asks(
    client: ExampleClient, tmp_path: Path
) -> None:
    settings = settings_with(**policy_of(tmp_path, "2"), **client.sections)
    async with running(settings) as service:
        result = await result_of(client, "twice", client.target(service), timeoutMs=60_000)
        rejected = total(service.metrics.registry, "samserve_errors_total", reason="QUOTA_EXCEEDED")

    assert result == {"error": None}
    assert rejected >= 1


async def test_rejection_beyond_the_deadline_is_an_error(
    client: ExampleClient, tmp_path: Path
) -> None:
    settings = settings_with(**policy_of(tmp_path, "0.001"), **client.sections)
    async with running(settings) as service:
        result = await result_of(client, "twice", client.target(service), timeoutMs=60_000)

    error = result["error"]
    assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert 60_000 < error["retryDelayMs"] <= 1_000_000
    assert error["quotaSubject"]


async def test_responses_over_the_default_limit_are_accepted(client: ExampleClient) -> None:
    prompts = [{"points": [{"x": 100 + number, "y": 100}]} for number in range(6)]
    async with running(settings_with(**client.sections)) as service:
        result = await result_of(client, "manyLogits", client.target(service), prompts=prompts)

    assert result["bytes"] == 6 * 3 * 256 * 256 * 4 > 4 << 20


async def test_api_key_is_sent_over_tls(
    client: ExampleClient,
    tmp_path: Path,
) -> None:
    authority, key_file = trustme.CA(), KeyFile(tmp_path / "keys.toml")
    issued = authority.issue_cert("localhost")
    pem = write_pem(tmp_path, issued)
    key = key_file.add("acme", "predict")
    settings = settings_with(
        tls=pem.settings(), auth={"api_keys_file": key_file.path}, **client.sections
    )
    trusted = {
        "ca": authority.cert_pem.bytes().decode(),
        "certificate": issued.cert_chain_pems[0].bytes().decode(),
    }
    async with running(settings) as service:
        target = client.target(service, tls=True)
        valid = await result_of(client, "models", target, {**trusted, "token": key})
        without = await result_of(client, "models", target, trusted)
        wrong = await result_of(client, "models", target, {**trusted, "token": "smsv_a_b"})
        untrusted = await result_of(client, "models", target, {"tls": True, "token": key})

    assert valid["error"] is None
    for refused in (without, wrong):
        assert refused["error"]["code"] == "UNAUTHENTICATED"
        assert refused["error"]["reason"]
    assert untrusted["error"]["code"] == "UNAVAILABLE"

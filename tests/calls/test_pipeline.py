"""The call pipeline without gRPC: the transport is a plain object."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.calls import slow_clients
from samserve.context import Priority, RequestContext
from samserve.errors import InvalidRequest
from structlog.testing import capture_logs

from tests.calls.plain_transport import PausedBody, PlainTransport, Service
from tests.metric_values import total
from tests.security.credentials import KeyFile, bearer, ca_file, write_pem
from tests.support.clock import advance_loop
from tests.support.waiting import until

Line = dict[str, Any]


def files(folder: Path, keys: KeyFile, policy: str = "") -> dict[str, Path]:
    """Return settings of a service with *keys* and a policy."""
    path = folder / "policy.toml"
    path.write_text(f"version = 1\n{policy}")
    return {"api_keys_file": keys.path, "policy_file": path}


async def context_of(
    service: Service, name: str, transport: PlainTransport | None = None
) -> RequestContext:
    """Make a call and return the context that its body receives."""
    contexts = []

    async def body(request: bytes, context: RequestContext) -> bytes:
        contexts.append(context)
        return request

    await service.call(name, transport, body)
    (context,) = contexts
    return context


async def test_call_returns_the_result_of_its_body() -> None:
    call = await Service().call("ListModels", PlainTransport(request=b"hello"))

    assert (call.response, call.failure) == ([b"hello"], None)
    assert len(call.request_id) == 32


async def test_credentials_identify_the_caller(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed")
    service = Service(auth=files(tmp_path, keys))

    context = await context_of(service, "Embed", PlainTransport(metadata=bearer(key)))
    without = await service.call("Embed")
    twice = await service.call("Embed", PlainTransport(metadata=bearer(key) * 2))

    assert (context.tenant, context.principal.subject) == ("acme", f"key:{key.split('_')[1]}")
    assert without.outcome == twice.outcome == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert without.response == []
    assert not without.was_read


async def test_verified_client_certificate_is_a_credential(
    tmp_path: Path,
) -> None:
    rules = '[identities."client.acme"]\ntenant = "acme"\nroles = ["embed"]'
    policy = tmp_path / "policy.toml"
    policy.write_text(f"version = 1\n{rules}")
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    pem = write_pem(tmp_path, authority.issue_cert("localhost"))
    tls = pem.settings(client_ca_file=ca_file(tmp_path, authority))
    service = Service(auth={"policy_file": policy}, tls=tls)

    known = ("client.acme",)
    context = await context_of(service, "Embed", PlainTransport(certificate=known))
    forbidden = await service.call("Predict", PlainTransport(certificate=known))
    other = await service.call("Embed", PlainTransport(certificate=("client.other",)))
    # A policy without identities admits no certificate.
    policy.write_text("version = 1")
    for file in service.security.files:
        file.refresh()
    later = await service.call("Embed", PlainTransport(certificate=known))

    assert context.principal.subject == "certificate:client.acme"
    assert forbidden.outcome == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert other.outcome == later.outcome == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_caller_needs_the_permission_of_the_method(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    caller = bearer(keys.add("acme", "embed"))
    service = Service(auth=files(tmp_path, keys))

    rejected = await service.call("Predict", PlainTransport(metadata=caller))

    assert rejected.outcome == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert rejected.failure is not None
    assert rejected.failure.metadata["permission"] == "predict"
    assert not rejected.was_read
    assert (await service.call("Embed", PlainTransport(metadata=caller))).failure is None


async def test_call_over_the_limit_is_rejected_until_another_ends() -> None:
    service, paused = Service(admission={"max_concurrent_embed": 1}), PausedBody()
    first = asyncio.create_task(service.call("Embed", body=paused))
    await paused.waiting.wait()

    rejected = await service.call("Embed")
    paused.go.set()
    await first

    assert rejected.outcome == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert rejected.failure is not None
    assert rejected.failure.retry_after_s == 1.0
    assert not rejected.was_read
    assert (await service.call("Embed")).failure is None
    assert not service.admission.busy()


async def test_requests_over_the_byte_limit_are_rejected() -> None:
    service, paused = Service(admission={"max_in_flight_request_bytes": 100}), PausedBody()
    first = asyncio.create_task(service.call("Embed", PlainTransport(request=bytes(60)), paused))
    await paused.waiting.wait()

    rejected = await service.call("Predict", PlainTransport(request=bytes(41)))
    paused.go.set()
    await first

    assert rejected.failure is not None
    assert rejected.failure.metadata["resource"] == "request_bytes"


async def test_calls_over_the_quota_of_a_tenant_are_rejected(tmp_path: Path) -> None:
    keys, paused = KeyFile(tmp_path / "keys.toml"), PausedBody()
    acme, other = (bearer(keys.add(tenant, "embed", "predict")) for tenant in ("acme", "other"))
    policy = (
        "[quotas.small]\nmax_concurrent_embed = 1\nmax_prompts = 2\n[tenants.acme]\nquota = 'small'"
    )
    service = Service(auth=files(tmp_path, keys, policy))
    first = asyncio.create_task(service.call("Embed", PlainTransport(metadata=acme), paused))
    await paused.waiting.wait()

    rejected = await service.call("Embed", PlainTransport(metadata=acme))
    context = await context_of(service, "Predict", PlainTransport(metadata=acme))
    others = await service.call("Embed", PlainTransport(metadata=other))
    paused.go.set()
    await first

    assert rejected.outcome == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert rejected.failure is not None
    assert rejected.failure.quota_subject == "tenant:acme"
    assert rejected.failure.metadata["quota"] == "max_concurrent_embed"
    assert rejected.failure.message == "the tenant's quota of 1 concurrent Embed calls is reached"
    assert not rejected.was_read
    assert context.allowance.max_prompts == 2
    assert others.failure is None


@pytest.mark.parametrize(
    ("name", "remaining_s", "expected_s"),
    [
        *[("Embed", None, 60), ("Predict", None, 60), ("AutoMask", None, 900)],
        *[("DeleteEmbedding", None, 10), ("ListModels", None, 10)],
        # The deadline of a client is neither shortened nor extended.
        *[("Embed", 5.0, 5), ("Embed", 600.0, 600)],
    ],
)
async def test_deadline_is_that_of_the_client_or_of_the_method(
    name: str, remaining_s: float | None, expected_s: int
) -> None:
    service, paused = Service(), PausedBody()
    transport = PlainTransport(remaining_s=remaining_s)
    call = asyncio.create_task(service.call(name, transport, paused))
    await paused.waiting.wait()

    await advance_loop(expected_s * 0.9)
    assert not call.done()
    await advance_loop(expected_s * 0.2)
    await call

    assert transport.outcome == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert transport.failure is not None
    assert transport.failure.metadata["stage"]


async def test_only_automask_has_bulk_priority() -> None:
    service = Service()

    priorities = {
        name: (await context_of(service, name)).priority for name in ("Embed", "AutoMask")
    }

    assert priorities == {"Embed": Priority.INTERACTIVE, "AutoMask": Priority.BULK}


async def test_metadata_over_the_limit_is_rejected_before_it_is_read() -> None:
    service = Service(server={"max_metadata_bytes": 4096})
    large = (("x-request-id", "given"), ("x-other", "x" * 4096))

    rejected = await service.call("ListModels", PlainTransport(metadata=large))

    assert rejected.outcome == ("INVALID_ARGUMENT", "METADATA_TOO_LARGE")
    assert rejected.request_id != "given"
    assert not rejected.was_read


async def broken(request: bytes, context: RequestContext) -> bytes:
    raise ValueError("secret at 0xdeadbeef")


async def invalid(request: bytes, context: RequestContext) -> bytes:
    raise InvalidRequest("prompts", "must not be empty")


async def test_internal_error_is_logged_and_not_returned() -> None:
    with capture_logs() as lines:
        call = await Service().call("Predict", body=broken)

    assert call.outcome == ("INTERNAL", "INTERNAL")
    assert call.failure is not None
    assert "secret" not in str(call.failure)
    assert dict(call.failure.metadata) == {"request_id": call.request_id}
    (error,) = [line for line in lines if line["event"] == "internal error"]
    assert "secret" in str(error["exc_info"])


async def test_invalid_request_names_its_fields() -> None:
    call = await Service().call("Predict", body=invalid)

    assert call.outcome == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert call.failure is not None
    assert [each.field for each in call.failure.violations] == ["prompts"]


async def test_every_call_is_logged_and_counted_once() -> None:
    service, paused = Service(), PausedBody()
    with capture_logs() as lines:
        with_id = PlainTransport(metadata=(("x-request-id", "r-1"),), request=b"12345")
        await service.call("Embed", with_id)
        await service.call("Predict", body=invalid)
        leaving = asyncio.create_task(service.call("AutoMask", body=paused))
        await paused.waiting.wait()
        in_flight = total(service.registry, "samserve_inflight_requests", grpc_method="AutoMask")
        leaving.cancel()
        await leaving

    calls = [line for line in lines if line["event"] == "rpc"]
    assert [(line["method"], line["code"], line["reason"]) for line in calls] == [
        ("Embed", "OK", None),
        ("Predict", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("AutoMask", "CANCELLED", None),
    ]
    first = calls[0]
    assert (first["request_id"], first["tenant"]) == ("r-1", "default")
    assert (first["received_bytes"], first["sent_bytes"]) == (5, 5)
    assert {"admit", "receive", "send"} <= first["stages_ms"].keys()
    handled = {
        line["code"]: total(
            service.registry,
            "grpc_server_handled_total",
            grpc_method=line["method"],
            grpc_code=line["code"],
        )
        for line in calls
    }
    assert handled == {"OK": 1, "INVALID_ARGUMENT": 1, "CANCELLED": 1}
    assert in_flight == 1
    assert total(service.registry, "samserve_inflight_requests") == 0


class SlowClient(PlainTransport):
    """Sends its request, and reads its response, once ``sends`` and ``reads`` are set."""

    def __init__(self, *, sends: bool, reads: bool) -> None:
        super().__init__()
        self.sends, self.reads = asyncio.Event(), asyncio.Event()
        self.reading, self.writing = asyncio.Event(), asyncio.Event()
        for event, at_once in ((self.sends, sends), (self.reads, reads)):
            if at_once:
                event.set()

    async def read(self) -> bytes:
        self.reading.set()
        await self.sends.wait()
        return await super().read()

    async def write(self, data: bytes) -> None:
        self.writing.set()
        await self.reads.wait()
        await super().write(data)


async def test_slow_response_releases_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    service = Service(admission={"max_concurrent_embed": 1, "max_slow_responses": 1})
    slow = SlowClient(sends=True, reads=False)
    first = asyncio.create_task(service.call("Embed", slow))

    await slow.writing.wait()

    async def served() -> bool:
        return (await service.call("Embed")).failure is None

    await until(served)
    rejected = SlowClient(sends=True, reads=False)
    await service.call("Embed", rejected)
    slow.reads.set()
    await first

    assert slow.response == [b"request"]
    assert rejected.failure is not None
    assert rejected.failure.metadata["resource"] == "slow_responses"


async def test_response_keeps_its_slot_until_it_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 600.0)
    service, slow = (
        Service(admission={"max_concurrent_embed": 1}),
        SlowClient(sends=True, reads=False),
    )
    first = asyncio.create_task(service.call("Embed", slow))
    await slow.writing.wait()
    await advance_loop(5)

    rejected = await service.call("Embed")
    slow.reads.set()
    await first

    assert rejected.outcome == ("RESOURCE_EXHAUSTED", "OVERLOADED")


@pytest.mark.parametrize(
    ("name", "code", "resource"),
    [
        ("Embed", "RESOURCE_EXHAUSTED", "slow_requests"),
        # Its request is small, so that it has no reason to be slow.
        ("ListModels", "DEADLINE_EXCEEDED", None),
    ],
)
async def test_slow_requests_have_separate_slots(
    name: str, code: str, resource: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    service = Service(admission={"max_slow_requests": 1})
    first = SlowClient(sends=False, reads=True)
    waiting = asyncio.create_task(service.call("Predict", first))
    await first.reading.wait()

    # It becomes slow after the first, which has begun before.
    rejected = SlowClient(sends=False, reads=True)
    await service.call(name, rejected)
    first.sends.set()
    await waiting

    assert rejected.failure is not None
    assert (rejected.failure.code.name, rejected.failure.metadata.get("resource")) == (
        code,
        resource,
    )
    assert first.response == [b"request"]

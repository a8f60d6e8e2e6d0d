"""What every call goes through, without gRPC: the transport is a plain object."""

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

from tests.calls.plain import Held, PlainTransport, Service
from tests.samples import total
from tests.security.credentials import KeyFile, bearer, ca_file, write_pem
from tests.support.clock import pass_on_the_loop
from tests.support.waiting import until

Line = dict[str, Any]


def files(folder: Path, keys: KeyFile, policy: str = "") -> dict[str, Path]:
    """Settings of a service that knows *keys*, under a policy."""
    path = folder / "policy.toml"
    path.write_text(f"version = 1\n{policy}")
    return {"keys_file": keys.path, "policy_file": path}


async def context_of(
    service: Service, name: str, transport: PlainTransport | None = None
) -> RequestContext:
    """The context that the body of a call gets."""
    seen = []

    async def body(request: bytes, context: RequestContext) -> bytes:
        seen.append(context)
        return request

    await service.call(name, transport, body)
    (context,) = seen
    return context


async def test_a_call_is_answered_with_what_its_body_returns() -> None:
    seen = await Service().call("ListModels", PlainTransport(request=b"hello"))

    assert (seen.answer, seen.failure) == ([b"hello"], None)
    assert len(seen.request_id) == 32


async def test_credentials_say_who_calls(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed")
    service = Service(auth=files(tmp_path, keys))

    context = await context_of(service, "Embed", PlainTransport(metadata=bearer(key)))
    without = await service.call("Embed")
    twice = await service.call("Embed", PlainTransport(metadata=bearer(key) * 2))

    assert (context.tenant, context.principal.subject) == ("acme", f"key:{key.split('_')[1]}")
    assert without.outcome == twice.outcome == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert without.answer == []
    assert not without.was_read


async def test_the_certificate_that_a_transport_has_verified_is_a_credential(
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
    # A policy that has lost its identities lets nobody in.
    policy.write_text("version = 1")
    for file in service.security.watched:
        file.refresh()
    later = await service.call("Embed", PlainTransport(certificate=known))

    assert context.principal.subject == "certificate:client.acme"
    assert forbidden.outcome == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert other.outcome == later.outcome == ("UNAUTHENTICATED", "UNAUTHENTICATED")


async def test_a_caller_needs_the_permission_of_the_method(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    caller = bearer(keys.add("acme", "embed"))
    service = Service(auth=files(tmp_path, keys))

    refused = await service.call("Predict", PlainTransport(metadata=caller))

    assert refused.outcome == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert refused.failure is not None
    assert refused.failure.metadata["permission"] == "predict"
    assert not refused.was_read
    assert (await service.call("Embed", PlainTransport(metadata=caller))).failure is None


async def test_a_call_over_the_limit_is_refused_until_another_has_ended() -> None:
    service, held = Service(admission={"embed": 1}), Held()
    first = asyncio.create_task(service.call("Embed", body=held))
    await held.waiting.wait()

    refused = await service.call("Embed")
    held.go.set()
    await first

    assert refused.outcome == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refused.failure is not None
    assert refused.failure.retry_after_s == 1.0
    assert not refused.was_read
    assert (await service.call("Embed")).failure is None
    assert not service.admission.busy()


async def test_requests_over_the_byte_budget_are_refused() -> None:
    service, held = Service(admission={"request_bytes": 100}), Held()
    first = asyncio.create_task(service.call("Embed", PlainTransport(request=bytes(60)), held))
    await held.waiting.wait()

    refused = await service.call("Predict", PlainTransport(request=bytes(41)))
    held.go.set()
    await first

    assert refused.failure is not None
    assert refused.failure.metadata["resource"] == "request_bytes"


async def test_a_tenant_is_held_to_its_quota(tmp_path: Path) -> None:
    keys, held = KeyFile(tmp_path / "keys.toml"), Held()
    acme, other = (bearer(keys.add(tenant, "embed", "predict")) for tenant in ("acme", "other"))
    policy = "[quotas.small]\nembed = 1\nprompts = 2\n[tenants.acme]\nquota = 'small'"
    service = Service(auth=files(tmp_path, keys, policy))
    first = asyncio.create_task(service.call("Embed", PlainTransport(metadata=acme), held))
    await held.waiting.wait()

    refused = await service.call("Embed", PlainTransport(metadata=acme))
    context = await context_of(service, "Predict", PlainTransport(metadata=acme))
    others = await service.call("Embed", PlainTransport(metadata=other))
    held.go.set()
    await first

    assert refused.outcome == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert refused.failure is not None
    assert refused.failure.quota_subject == "tenant:acme"
    assert refused.failure.metadata["quota"] == "embed"
    assert refused.failure.message == "1 Embed calls of this tenant are in flight, its quota"
    assert not refused.was_read
    assert context.allowance.prompts == 2
    assert others.failure is None


@pytest.mark.parametrize(
    ("name", "remaining_s", "expected_s"),
    [
        *[("Embed", None, 60), ("Predict", None, 60), ("AutoMask", None, 900)],
        *[("DeleteEmbedding", None, 10), ("ListModels", None, 10)],
        # A client's own is neither shortened nor prolonged.
        *[("Embed", 5.0, 5), ("Embed", 600.0, 600)],
    ],
)
async def test_the_deadline_is_the_client_s_or_that_of_the_method(
    name: str, remaining_s: float | None, expected_s: int
) -> None:
    service, held = Service(), Held()
    transport = PlainTransport(remaining_s=remaining_s)
    call = asyncio.create_task(service.call(name, transport, held))
    await held.waiting.wait()

    await pass_on_the_loop(expected_s * 0.9)
    assert not call.done()
    await pass_on_the_loop(expected_s * 0.2)
    await call

    assert transport.outcome == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert transport.failure is not None
    assert transport.failure.metadata["stage"]


async def test_only_automask_waits_behind_other_work() -> None:
    service = Service()

    priorities = {
        name: (await context_of(service, name)).priority for name in ("Embed", "AutoMask")
    }

    assert priorities == {"Embed": Priority.INTERACTIVE, "AutoMask": Priority.BULK}


async def test_metadata_over_the_limit_is_refused_before_it_is_read() -> None:
    service = Service(server={"metadata_bytes": 4096})
    much = (("x-request-id", "given"), ("x-other", "x" * 4096))

    refused = await service.call("ListModels", PlainTransport(metadata=much))

    assert refused.outcome == ("INVALID_ARGUMENT", "METADATA_TOO_LARGE")
    assert refused.request_id != "given"
    assert not refused.was_read


async def broken(request: bytes, context: RequestContext) -> bytes:
    raise ValueError("secret at 0xdeadbeef")


async def invalid(request: bytes, context: RequestContext) -> bytes:
    raise InvalidRequest("prompts", "must not be empty")


async def test_an_internal_error_is_logged_and_not_answered() -> None:
    with capture_logs() as lines:
        seen = await Service().call("Predict", body=broken)

    assert seen.outcome == ("INTERNAL", "INTERNAL")
    assert seen.failure is not None
    assert "secret" not in str(seen.failure)
    assert dict(seen.failure.metadata) == {"request_id": seen.request_id}
    (error,) = [line for line in lines if line["event"] == "internal error"]
    assert "secret" in str(error["exc_info"])


async def test_an_invalid_request_names_its_fields() -> None:
    seen = await Service().call("Predict", body=invalid)

    assert seen.outcome == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert seen.failure is not None
    assert [each.field for each in seen.failure.violations] == ["prompts"]


async def test_every_call_leaves_one_line_and_is_counted() -> None:
    service, held = Service(), Held()
    with capture_logs() as lines:
        named = PlainTransport(metadata=(("x-request-id", "r-1"),), request=b"12345")
        await service.call("Embed", named)
        await service.call("Predict", body=invalid)
        leaving = asyncio.create_task(service.call("AutoMask", body=held))
        await held.waiting.wait()
        in_flight = total(service.registry, "samserve_inflight_requests", grpc_method="AutoMask")
        leaving.cancel()
        await leaving

    calls = [line for line in lines if line["event"] == "call"]
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
    """Sends its request, or takes its answer, when it may."""

    def __init__(self, *, sends: bool, takes: bool) -> None:
        super().__init__()
        self.sends, self.takes = asyncio.Event(), asyncio.Event()
        self.reading, self.writing = asyncio.Event(), asyncio.Event()
        for event, at_once in ((self.sends, sends), (self.takes, takes)):
            if at_once:
                event.set()

    async def read(self) -> bytes:
        self.reading.set()
        await self.sends.wait()
        return await super().read()

    async def write(self, data: bytes) -> None:
        self.writing.set()
        await self.takes.wait()
        await super().write(data)


async def test_a_slow_answer_gives_its_place_to_another_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "PROMPT_S", 0.01)
    service = Service(admission={"embed": 1, "slow_answers": 1})
    slow = SlowClient(sends=True, takes=False)
    first = asyncio.create_task(service.call("Embed", slow))

    await slow.writing.wait()

    async def served() -> bool:
        return (await service.call("Embed")).failure is None

    await until(served)
    refused = SlowClient(sends=True, takes=False)
    await service.call("Embed", refused)
    slow.takes.set()
    await first

    assert slow.answer == [b"request"]
    assert refused.failure is not None
    assert refused.failure.metadata["resource"] == "slow_answers"


async def test_an_answer_that_may_still_be_taken_at_once_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "PROMPT_S", 600.0)
    service, slow = Service(admission={"embed": 1}), SlowClient(sends=True, takes=False)
    first = asyncio.create_task(service.call("Embed", slow))
    await slow.writing.wait()
    await pass_on_the_loop(5)

    refused = await service.call("Embed")
    slow.takes.set()
    await first

    assert refused.outcome == ("RESOURCE_EXHAUSTED", "OVERLOADED")


@pytest.mark.parametrize(
    ("name", "code", "resource"),
    [
        ("Embed", "RESOURCE_EXHAUSTED", "slow_requests"),
        # Its request has nothing to wait for.
        ("ListModels", "DEADLINE_EXCEEDED", None),
    ],
)
async def test_slow_requests_have_places_of_their_own(
    name: str, code: str, resource: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "PROMPT_S", 0.01)
    service = Service(admission={"slow_requests": 1})
    first = SlowClient(sends=False, takes=True)
    waiting = asyncio.create_task(service.call("Predict", first))
    await first.reading.wait()

    # Its time to be quick ends after that of the first, which has begun before.
    refused = SlowClient(sends=False, takes=True)
    await service.call(name, refused)
    first.sends.set()
    await waiting

    assert refused.failure is not None
    assert (refused.failure.code.name, refused.failure.metadata.get("resource")) == (code, resource)
    assert first.answer == [b"request"]

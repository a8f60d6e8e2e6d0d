"""The tables of errors in `docs/operations.md` are correct: each row is provoked here.

Failing engines are fake ones; the errors of the real ones are tested in `tests/engines`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samserve import errors
from samserve.app import running
from samserve.calls.status import code_of
from samserve.engines.fake import FakeEngine
from samserve.engines.triton.failures import QueueFull
from samserve.rpc import public_services
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub as Stub

from harness.triton.ports import free_ports
from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with, stub_of
from tests.http.clients import connect_error
from tests.http.serving import http_service
from tests.http.wire import JSON, connected
from tests.http.wire import SERVICE as SERVICE_PATH
from tests.rpc.errors import Failure, error_of, finish, read
from tests.security.credentials import KeyFile, channel_credentials, write_pem
from tests.support.engines import BrokenEngine, PausedEngine, wait_for_encodes

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"^## Errors$(.*?)^## ",
    (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)
DETAILS = "grpc-status-details-bin"
LIST = pb.ListModelsRequest()
HEALTH = health_pb2.HealthCheckRequest()
OWN_POOL = ("grpc.use_local_subchannel_pool", 1)


class Row(NamedTuple):
    """A row: a code with a reason, or with a part of the text."""

    code: str
    text: str
    advice: str

    @property
    def key(self) -> tuple[str, str]:
        return self.code, self.text


def rows_of(table: str) -> list[Row]:
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) > 2 and cells[0].isupper():
            found.append(Row(cells[0], cells[1].strip("`"), cells[-1]))
    return found


def tables() -> tuple[list[Row], list[Row]]:
    """Return the rows with a reason of samserve, and those without a reason."""
    assert SECTION is not None
    with_reason, without = re.findall(r"(?:^\|.*\n)+", SECTION[1], re.MULTILINE)
    return rows_of(with_reason), rows_of(without)


SAMSERVE_ROWS, GRPC_ROWS = tables()


@dataclass(frozen=True)
class Kit:
    """Resources that some errors need."""

    folder: Path
    keys: KeyFile
    authority: trustme.CA
    patch: pytest.MonkeyPatch

    def pem(self, name: str = "localhost") -> dict[str, Any]:
        """Return settings of a server with a certificate for a name."""
        return write_pem(self.folder / name, self.authority.issue_cert(name)).settings()


Provocation: TypeAlias = Callable[[Kit], Awaitable[grpc.aio.AioRpcError]]
PROVOKED: defaultdict[tuple[str, str], list[Provocation]] = defaultdict(list)


def provokes(code: str, text: str) -> Callable[[Provocation], Provocation]:
    def register(provocation: Provocation) -> Provocation:
        PROVOKED[code, text].append(provocation)
        return provocation

    return register


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def kit(tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Kit:
    return Kit(tmp_path, KeyFile(tmp_path / "keys.toml"), authority, monkeypatch)


def names(rows: list[Row]) -> list[str]:
    return [f"{row.code}-{row.text.replace(' ', '_')}" for row in rows]


@pytest.mark.parametrize("row", SAMSERVE_ROWS, ids=names(SAMSERVE_ROWS))
async def test_row_with_a_reason_matches_the_error(row: Row, kit: Kit) -> None:
    assert PROVOKED[row.key], "nothing provokes this"
    for provocation in PROVOKED[row.key]:
        failure: Failure = read(await provocation(kit))

        assert (failure.code.name, failure.reason) == row.key, provocation.__name__
        if "RetryInfo" not in row.advice:
            assert failure.retry_after_s is None, provocation.__name__
        elif "without one" not in row.advice:
            assert failure.retry_after_s, provocation.__name__
        if "BadRequest" in row.advice:
            assert failure.fields
        for name in ("permission", "stage"):
            assert f"`{name}`" not in row.advice or failure.metadata[name]


@pytest.mark.parametrize("row", GRPC_ROWS, ids=names(GRPC_ROWS))
async def test_row_of_grpc_matches_the_error(row: Row, kit: Kit) -> None:
    assert PROVOKED[row.key], "nothing provokes this"
    for provocation in PROVOKED[row.key]:
        error = await provocation(kit)

        assert error.code().name == row.code, provocation.__name__
        assert row.text in str(error.details()), provocation.__name__
        assert DETAILS not in dict(error.trailing_metadata() or ()), provocation.__name__


def test_provoked_errors_are_in_the_tables_once() -> None:
    keys = [row.key for row in (*SAMSERVE_ROWS, *GRPC_ROWS)]

    assert sorted(keys) == sorted(PROVOKED)
    assert len(SAMSERVE_ROWS) > 10
    assert len(GRPC_ROWS) > 10


def test_every_error_class_has_a_row() -> None:
    # Raised at startup only, never during a call.
    at_start = {errors.Misconfigured}
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.SamserveError)
        and "reason" in vars(kind)
    }
    known = {(row.code, row.text) for row in SAMSERVE_ROWS}

    assert known == {(code_of(kind.__new__(kind)).name, kind.reason) for kind in kinds - at_start}


def embed(seed: int = 0, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=sample_images.image(seed=seed), **fields)


def predict(**fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(**{"prompts": [sample_images.point_prompt()], **fields})


@asynccontextmanager
async def channel_of(
    engine: FakeEngine | None = None, options: Sequence[Any] = UNLIMITED
) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running(settings_with(), engine=engine or FakeEngine()) as service,
        grpc.aio.insecure_channel(service.address, options=options) as channel,
    ):
        yield channel


async def error_for(request: Any, *, engine: FakeEngine | None = None, **sections: Any) -> Any:
    """Send one request to a separate service, and return its error."""
    async with serving(settings_with(**sections), engine=engine or FakeEngine()) as (_, stub):
        return await error_of(sent(stub, request))


def sent(stub: Stub, request: Any) -> Any:
    return getattr(stub, type(request).__name__.removesuffix("Request"))(request)


def by_request(
    code: str,
    text: str,
    request: Any,
    *,
    engine: Callable[[], FakeEngine] = FakeEngine,
    **sections: Any,
) -> None:
    """Provoke an error with one request to a separate service."""

    async def provoke(_: Kit) -> Any:
        return await error_for(request, engine=engine(), **sections)

    provoke.__name__ = f"{code} {text}"
    provokes(code, text)(provoke)


by_request("INVALID_ARGUMENT", "INVALID_ARGUMENT", pb.PredictRequest())
by_request("INVALID_ARGUMENT", "IMAGE_UNREADABLE", pb.EmbedRequest(image=pb.Image(encoded=b"no")))
by_request("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", embed(), limits={"max_image_pixels": 10})
by_request("NOT_FOUND", "EMBEDDING_NOT_FOUND", predict(embedding_id="0" * 64))
by_request("NOT_FOUND", "MODEL_NOT_FOUND", embed(model="other"))
by_request("UNAVAILABLE", "CACHE_UNAVAILABLE", embed(durability=pb.DURABILITY_DURABLE))
late = {"deadlines": {"embed_s": 0.1}}
by_request("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", embed(), engine=PausedEngine, **late)
too_large = "SERVER: Received message larger than max"
by_request("RESOURCE_EXHAUSTED", too_large, embed(), limits={"max_request_bytes": 1000})
for code, text, error in [
    ("INTERNAL", "INTERNAL", ValueError("secret")),
    ("RESOURCE_EXHAUSTED", "OVERLOADED", QueueFull("the queue of Triton is full")),
    ("RESOURCE_EXHAUSTED", "MEMORY_EXHAUSTED", errors.MemoryExhausted("no shared memory")),
    ("UNAVAILABLE", "ENGINE_UNAVAILABLE", errors.EngineUnavailable("Triton is unavailable")),
]:
    by_request(code, text, embed(), engine=partial(BrokenEngine, error, encode=True))


def over_a_channel(code: str, text: str, call: Callable[[grpc.aio.Channel], Any]) -> None:
    """Provoke an error with one call over a channel to a separate service."""

    async def provoke(_: Kit) -> Any:
        async with channel_of() as channel:
            return await error_of(call(channel))

    provoke.__name__ = f"{code} {text}"
    provokes(code, text)(provoke)


EMBED, CHECK = "/samserve.v1.SegmentationService/Embed", "/grpc.health.v1.Health/Check"
LARGE = {"metadata": (("a", "x" * 20_000),)}
INVALID = "INVALID_ARGUMENT"
for text, call in [
    ("INVALID_ARGUMENT", lambda channel: channel.unary_unary(EMBED)(b"\xff")),
    ("METADATA_TOO_LARGE", lambda channel: Stub(channel).ListModels(LIST, **LARGE)),
    ("server.max_metadata_bytes allows", lambda channel: channel.unary_unary(CHECK)(b"", **LARGE)),
    ("the request is missing", lambda channel: channel.stream_unary(CHECK)(iter(()))),
    ("not a message of this method", lambda channel: channel.unary_unary(CHECK)(b"\xff")),
]:
    over_a_channel(INVALID, text, call)


@provokes("INVALID_ARGUMENT", "RESPONSE_TOO_LARGE")
async def _large_response(_: Kit) -> Any:
    request = predict(image=sample_images.image(), include_low_res_logits=True)
    failed = await error_for(request, limits={"max_response_bytes": 100_000})
    assert read(failed).metadata["limit"] == "100000"
    return failed


@provokes("UNAUTHENTICATED", "UNAUTHENTICATED")
async def _no_credentials(kit: Kit) -> Any:
    kit.keys.add("acme", "embed")
    return await error_for(LIST, auth={"api_keys_file": kit.keys.path})


@provokes("PERMISSION_DENIED", "PERMISSION_DENIED")
async def _missing_role(kit: Kit) -> Any:
    key = kit.keys.add("acme")
    settings = settings_with(auth={"api_keys_file": kit.keys.path})
    async with serving(settings, engine=FakeEngine()) as (_service, stub):
        metadata = (("authorization", f"Bearer {key}"),)
        return await error_of(stub.Embed(embed(), metadata=metadata))


@provokes("UNIMPLEMENTED", "METHOD_DISABLED")
async def _method_that_is_not_enabled(kit: Kit) -> Any:
    return await error_for(pb.GetEmbeddingRequest(embedding_id="0" * 64))


@provokes("FAILED_PRECONDITION", "PROMOTION_REFUSED")
async def _version_that_is_not_prepared(kit: Kit) -> Any:
    step = pb.PROMOTION_STEP_ACTIVATE
    return await error_for(pb.PromoteModelRequest(step=step, model="fake", digest="0" * 64))


def quota(name: str, value: str, *requests: Any) -> None:
    """Provoke QUOTA_EXCEEDED with the last of some requests."""

    async def provoke(kit: Kit) -> Any:
        policy = kit.folder / f"{name}.toml"
        policy.write_text(f"version = 1\n[quotas.default]\n{name} = {value}\n")
        settings = settings_with(auth={"policy_file": policy})
        async with serving(settings, engine=FakeEngine()) as (_service, stub):
            for request in requests[:-1]:
                await sent(stub, request)
            failed = await error_of(sent(stub, requests[-1]))
        failure = read(failed)
        assert failure.metadata["quota"] == name
        # Waiting helps for a rate limit only.
        assert (failure.retry_after_s is not None) is (name == "requests_per_s")
        return failed

    provoke.__name__ = name
    provokes("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")(provoke)


quota("requests_per_s", "0.001\nburst = 1", LIST, LIST)
quota("max_cached_bytes", "1000", embed())
quota("max_image_megapixels", "0.0001", embed())
quota(
    "max_prompts",
    "1",
    predict(image=sample_images.image(), prompts=[sample_images.point_prompt()] * 2),
)


def overloaded(resource: str, request: Any, then: Any, **sections: Any) -> None:
    """Provoke OVERLOADED with a request while another one is in flight."""

    async def provoke(_: Kit) -> Any:
        engine, go = FakeEngine(), asyncio.Event()
        async with serving(settings_with(**sections), engine=engine) as (_service, stub):
            engine.hold(go)
            first = asyncio.create_task(finish(stub.Embed(request)))
            await wait_for_encodes(engine, 1)
            failed = await error_of(stub.Embed(then))
            go.set()
            await first
        assert read(failed).metadata.get("resource", "") == resource
        return failed

    provoke.__name__ = resource
    provokes("RESOURCE_EXHAUSTED", "OVERLOADED")(provoke)


overloaded("calls", embed(), embed(1), admission={"max_concurrent_embed": 1})
overloaded("request_bytes", embed(), embed(1), admission={"max_in_flight_request_bytes": 12_000})
ahead = (embed(prefetch=True), embed(1, prefetch=True))
overloaded("prefetches", *ahead, admission={"max_prefetches": 1})
overloaded("prefetch_bytes", *ahead, admission={"max_prefetch_bytes": 10_000})
overloaded("", embed(), embed(1), cache={"local": {"capacity_bytes": 2 << 20}})


@provokes("UNAVAILABLE", "CACHE_UNAVAILABLE")
async def _shared_cache_unavailable(_: Kit) -> Any:
    (port,) = free_ports(1)
    shared = {"nodes": f"127.0.0.1:{port}"}
    return await error_for(predict(embedding_id="0" * 64), cache={"shared": shared})


def over_http(
    code: str,
    text: str,
    path: str,
    *headers: tuple[str, str],
    body: bytes = b"{}",
    web_page: bool = False,
    **options: str,
) -> None:
    """Provoke an error with one request to the HTTP listener."""

    async def provoke(_: Kit) -> Any:
        http = {"web_page": web_page}
        async with http_service(http=http) as service, connected(service.http_address) as wire:
            response = await wire.request(path, body, [JSON, *headers], **options)
            return connect_error(json.loads(response.body), response)

    provoke.__name__ = f"{code} {text}"
    provokes(code, text)(provoke)


LIST_PATH = f"{SERVICE_PATH}ListModels"
over_http("PERMISSION_DENIED", "HOST_NOT_ALLOWED", LIST_PATH, host="evil.test")
over_http("PERMISSION_DENIED", "ORIGIN_NOT_ALLOWED", LIST_PATH, ("origin", "https://evil.test"))
over_http("NOT_FOUND", "DECODER_NOT_FOUND", f"/decoders/{'0' * 64}", method="GET")
over_http("UNAUTHENTICATED", "SESSION_REQUIRED", LIST_PATH, web_page=True)
WRONG_TOKEN = b'{"token": "wrong"}'
over_http(
    "UNAUTHENTICATED", "SESSION_TOKEN_INVALID", "/web/session", body=WRONG_TOKEN, web_page=True
)


async def list_models(
    address: str, credentials: grpc.ChannelCredentials | None = None, *options: Any
) -> grpc.aio.AioRpcError:
    """Call over a separate connection, which fails."""
    options = (OWN_POOL, *options)
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        return await error_of(Stub(channel).ListModels(LIST))


@provokes("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max")
async def _client_receive_limit(_: Kit) -> Any:
    async with running(settings_with(), engine=FakeEngine()) as service:
        return await list_models(service.address, None, ("grpc.max_receive_message_length", 10))


@provokes("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max")
async def _client_send_limit(_: Kit) -> Any:
    options = [OWN_POOL, ("grpc.max_send_message_length", 1000)]
    async with channel_of(options=options) as channel:
        return await error_of(Stub(channel).Embed(embed()))


@provokes("RESOURCE_EXHAUSTED", "metadata size exceeds hard limit")
async def _large_metadata(_: Kit) -> Any:
    async with serving(engine=FakeEngine()) as (_service, stub):
        # Before the client has received the server's limit, it may send more.
        await stub.ListModels(LIST)
        return await error_of(stub.ListModels(LIST, metadata=(("a", "x" * 60_000),)))


@provokes("RESOURCE_EXHAUSTED", "are reserved for other tenants")
async def _many_watches(kit: Kit) -> Any:
    kit.patch.setattr(public_services, "MAX_CALLS", 8)
    async with channel_of() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(HEALTH) for _ in range(6)]
        for watch in watches:
            await watch.read()
        return await error_of(stub.Watch(HEALTH))


@provokes("UNAVAILABLE", "Connection refused")
async def _nothing_listens(_: Kit) -> Any:
    (port,) = free_ports(1)
    return await list_models(f"127.0.0.1:{port}")


@provokes("UNAVAILABLE", "errors resolving")
async def _no_such_name(_: Kit) -> Any:
    # A missing name server has the same effect as an unknown name.
    (port,) = free_ports(1)
    return await list_models(f"dns://127.0.0.1:{port}/samserve.invalid:1")


async def over_tls(
    kit: Kit, credentials: grpc.ChannelCredentials | None, name: str = "localhost", **tls: Any
) -> Any:
    """Call a server with TLS, which fails."""
    settings = settings_with(tls={**kit.pem(name), **tls})
    async with running(settings, engine=FakeEngine()) as service:
        address = service.address.replace("127.0.0.1", "localhost")
        return await list_models(address, credentials)


@provokes("UNAVAILABLE", "Socket closed")
async def _plaintext_client(kit: Kit) -> Any:
    return await over_tls(kit, None)


@provokes("UNAVAILABLE", "Socket closed")
async def _no_client_certificate(kit: Kit) -> Any:
    ca = kit.folder / "clients.crt"
    ca.write_bytes(kit.authority.cert_pem.bytes())
    return await over_tls(kit, channel_credentials(kit.authority), client_ca_file=ca)


@provokes("UNAVAILABLE", "Socket closed")
async def _too_many_connections(_: Kit) -> Any:
    settings = settings_with(server={"max_connections": 1})
    async with serving(settings, engine=FakeEngine()) as (service, stub):
        await stub.ListModels(LIST)
        return await list_models(service.address)


@provokes("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED")
async def _untrusted_certificate(kit: Kit) -> Any:
    return await over_tls(kit, channel_credentials(trustme.CA()))


@provokes("UNAVAILABLE", "Hostname Verification Check failed")
async def _certificate_of_another_name(kit: Kit) -> Any:
    return await over_tls(kit, channel_credentials(kit.authority), "elsewhere.test")


@provokes("UNAVAILABLE", "WRONG_VERSION_NUMBER")
async def _tls_to_plaintext(kit: Kit) -> Any:
    async with running(settings_with(), engine=FakeEngine()) as service:
        return await list_models(service.address, channel_credentials(kit.authority))


@provokes("UNAVAILABLE", "Too many pings")
async def _too_many_pings(_: Kit) -> Any:
    options = [
        *UNLIMITED,
        ("grpc.keepalive_time_ms", 10),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_sent_ping_interval_without_data_ms", 10),
    ]
    engine = PausedEngine()
    async with channel_of(engine, options) as channel:
        return await error_of(Stub(channel).Embed(embed()))


@provokes("UNAVAILABLE", "Cancelling all calls")
async def _shutdown(_: Kit) -> Any:
    engine = PausedEngine()
    server = running(settings_with(server={"grace_period_s": 0.1}), engine=engine)
    service = await server.__aenter__()
    async with stub_of(service.address) as stub:
        failing = asyncio.create_task(error_of(stub.Embed(embed())))
        await engine.waiting.wait()
        await server.__aexit__(None, None, None)
        return await failing


@provokes("UNAVAILABLE", "the maximum duration of")
async def _long_watch(kit: Kit) -> Any:
    kit.patch.setattr(public_services, "LIFETIME_S", 0.1)
    async with channel_of() as channel:
        return await error_of(health_pb2_grpc.HealthStub(channel).Watch(HEALTH))

"""The tables of errors in `docs/operations.md` are true: each row is provoked here.

Where an engine has to fail it is a fake one; what the real ones say is in `tests/engines`.
"""

from __future__ import annotations

import asyncio
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
from tests import pictures
from tests.conftest import UNLIMITED, serving, settings_with, stub_of
from tests.rpc.errors import Failure, finish, read, refused
from tests.security.credentials import KeyFile, channel_credentials, write_pem
from tests.support.engines import BrokenEngine, HeldEngine, encodes_begun

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
    """A row: a code with a reason, or with what is in the text."""

    code: str
    said: str
    advice: str

    @property
    def key(self) -> tuple[str, str]:
        return self.code, self.said


def rows_of(table: str) -> list[Row]:
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) > 2 and cells[0].isupper():
            found.append(Row(cells[0], cells[1].strip("`"), cells[-1]))
    return found


def tables() -> tuple[list[Row], list[Row]]:
    """The rows with a reason of ours, and those without."""
    assert SECTION is not None
    ours, _, grpcs = SECTION[1].partition("What gRPC itself says")
    return rows_of(ours), rows_of(grpcs)


OURS, GRPCS = tables()


@dataclass(frozen=True)
class Kit:
    """What some errors need."""

    folder: Path
    keys: KeyFile
    authority: trustme.CA
    patch: pytest.MonkeyPatch

    def pem(self, name: str = "localhost") -> dict[str, Any]:
        """Settings of a server with a certificate for a name."""
        return write_pem(self.folder / name, self.authority.issue_cert(name)).settings()


Provocation: TypeAlias = Callable[[Kit], Awaitable[grpc.aio.AioRpcError]]
PROVOKED: defaultdict[tuple[str, str], list[Provocation]] = defaultdict(list)


def provokes(code: str, said: str) -> Callable[[Provocation], Provocation]:
    def register(provocation: Provocation) -> Provocation:
        PROVOKED[code, said].append(provocation)
        return provocation

    return register


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def kit(tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Kit:
    return Kit(tmp_path, KeyFile(tmp_path / "keys.toml"), authority, monkeypatch)


def names(rows: list[Row]) -> list[str]:
    return [f"{row.code}-{row.said.replace(' ', '_')}" for row in rows]


@pytest.mark.parametrize("row", OURS, ids=names(OURS))
async def test_a_row_with_a_reason_is_as_it_says(row: Row, kit: Kit) -> None:
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


@pytest.mark.parametrize("row", GRPCS, ids=names(GRPCS))
async def test_a_row_of_grpcs_is_as_it_says(row: Row, kit: Kit) -> None:
    assert PROVOKED[row.key], "nothing provokes this"
    for provocation in PROVOKED[row.key]:
        error = await provocation(kit)

        assert error.code().name == row.code, provocation.__name__
        assert row.said in str(error.details()), provocation.__name__
        assert DETAILS not in dict(error.trailing_metadata() or ()), provocation.__name__


def test_what_is_provoked_is_in_the_tables_once() -> None:
    keys = [row.key for row in (*OURS, *GRPCS)]

    assert sorted(keys) == sorted(PROVOKED)
    assert len(OURS) > 10
    assert len(GRPCS) > 10


def test_every_error_of_the_package_has_a_row() -> None:
    # These end a start, and are no answer to a call.
    at_start = {errors.Misconfigured}
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.SamserveError)
        and "reason" in vars(kind)
    }
    known = {(row.code, row.said) for row in OURS}

    assert known == {(code_of(kind.__new__(kind)).name, kind.reason) for kind in kinds - at_start}


def embed(seed: int = 0, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=pictures.image(seed=seed), **fields)


def predict(**fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(**{"prompts": [pictures.click()], **fields})


@asynccontextmanager
async def channel_of(
    engine: FakeEngine | None = None, options: Sequence[Any] = UNLIMITED
) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        running(settings_with(), engine=engine or FakeEngine()) as service,
        grpc.aio.insecure_channel(service.address, options=options) as channel,
    ):
        yield channel


async def answer(request: Any, *, engine: FakeEngine | None = None, **sections: Any) -> Any:
    """Send one request to a service of its own."""
    async with serving(settings_with(**sections), engine=engine or FakeEngine()) as (_, stub):
        return await refused(sent(stub, request))


def sent(stub: Stub, request: Any) -> Any:
    return getattr(stub, type(request).__name__.removesuffix("Request"))(request)


def answered(
    code: str,
    said: str,
    request: Any,
    *,
    engine: Callable[[], FakeEngine] = FakeEngine,
    **sections: Any,
) -> None:
    """Provoke an error with one request to a service of its own."""

    async def provoke(_: Kit) -> Any:
        return await answer(request, engine=engine(), **sections)

    provoke.__name__ = f"{code} {said}"
    provokes(code, said)(provoke)


answered("INVALID_ARGUMENT", "INVALID_ARGUMENT", pb.PredictRequest())
answered("INVALID_ARGUMENT", "IMAGE_UNREADABLE", pb.EmbedRequest(image=pb.Image(encoded=b"no")))
answered("INVALID_ARGUMENT", "IMAGE_TOO_LARGE", embed(), limits={"image_pixels": 10})
answered("NOT_FOUND", "EMBEDDING_NOT_FOUND", predict(embedding_id="0" * 64))
answered("NOT_FOUND", "MODEL_NOT_FOUND", embed(model="other"))
answered("UNAVAILABLE", "STORE_UNAVAILABLE", embed(durability=pb.DURABILITY_DURABLE))
late = {"deadlines": {"embed_s": 0.1}}
answered("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", embed(), engine=HeldEngine, **late)
too_large = "SERVER: Received message larger than max"
answered("RESOURCE_EXHAUSTED", too_large, embed(), limits={"request_bytes": 1000})
for code, said, error in [
    ("INTERNAL", "INTERNAL", ValueError("secret")),
    ("RESOURCE_EXHAUSTED", "OVERLOADED", QueueFull("the queue of the model server is full")),
    ("RESOURCE_EXHAUSTED", "MEMORY_EXHAUSTED", errors.MemoryExhausted("no shared memory")),
    ("UNAVAILABLE", "ENGINE_UNAVAILABLE", errors.EngineUnavailable("no model server")),
]:
    answered(code, said, embed(), engine=partial(BrokenEngine, error, encode=True))


def over_a_channel(code: str, said: str, call: Callable[[grpc.aio.Channel], Any]) -> None:
    """Provoke an error with one call to a service of its own."""

    async def provoke(_: Kit) -> Any:
        async with channel_of() as channel:
            return await refused(call(channel))

    provoke.__name__ = f"{code} {said}"
    provokes(code, said)(provoke)


EMBED, CHECK = "/samserve.v1.SegmentationService/Embed", "/grpc.health.v1.Health/Check"
MUCH = {"metadata": (("a", "x" * 20_000),)}
INVALID = "INVALID_ARGUMENT"
for said, call in [
    ("INVALID_ARGUMENT", lambda channel: channel.unary_unary(EMBED)(b"\xff")),
    ("METADATA_TOO_LARGE", lambda channel: Stub(channel).ListModels(LIST, **MUCH)),
    ("server.metadata_bytes allows", lambda channel: channel.unary_unary(CHECK)(b"", **MUCH)),
    ("the request is missing", lambda channel: channel.stream_unary(CHECK)(iter(()))),
    ("not a message of this method", lambda channel: channel.unary_unary(CHECK)(b"\xff")),
]:
    over_a_channel(INVALID, said, call)


@provokes("INVALID_ARGUMENT", "RESPONSE_TOO_LARGE")
async def _large_answer(_: Kit) -> Any:
    request = predict(image=pictures.image(), include_low_res_logits=True)
    failed = await answer(request, limits={"response_bytes": 100_000})
    assert read(failed).metadata["limit"] == "100000"
    return failed


@provokes("UNAUTHENTICATED", "UNAUTHENTICATED")
async def _nobody(kit: Kit) -> Any:
    kit.keys.add("acme", "embed")
    return await answer(LIST, auth={"keys_file": kit.keys.path})


@provokes("PERMISSION_DENIED", "PERMISSION_DENIED")
async def _role(kit: Kit) -> Any:
    key = kit.keys.add("acme")
    settings = settings_with(auth={"keys_file": kit.keys.path})
    async with serving(settings, engine=FakeEngine()) as (_service, stub):
        metadata = (("authorization", f"Bearer {key}"),)
        return await refused(stub.Embed(embed(), metadata=metadata))


def quota(name: str, value: str, *requests: Any) -> None:
    """Provoke QUOTA_EXCEEDED with the last of some requests."""

    async def provoke(kit: Kit) -> Any:
        policy = kit.folder / f"{name}.toml"
        policy.write_text(f"version = 1\n[quotas.default]\n{name} = {value}\n")
        settings = settings_with(auth={"policy_file": policy})
        async with serving(settings, engine=FakeEngine()) as (_service, stub):
            for request in requests[:-1]:
                await sent(stub, request)
            failed = await refused(sent(stub, requests[-1]))
        failure = read(failed)
        assert failure.metadata["quota"] == name
        # Waiting helps with a rate only.
        assert (failure.retry_after_s is not None) is (name == "requests_per_s")
        return failed

    provoke.__name__ = name
    provokes("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")(provoke)


quota("requests_per_s", "0.001\nburst = 1", LIST, LIST)
quota("stored_bytes", "1000", embed())
quota("image_megapixels", "0.0001", embed())
quota("prompts", "1", predict(image=pictures.image(), prompts=[pictures.click()] * 2))


def overloaded(resource: str, request: Any, then: Any, **sections: Any) -> None:
    """Provoke OVERLOADED with a request while another one is being worked on."""

    async def provoke(_: Kit) -> Any:
        engine, held = FakeEngine(), asyncio.Event()
        async with serving(settings_with(**sections), engine=engine) as (_service, stub):
            engine.hold(held)
            first = asyncio.create_task(finish(stub.Embed(request)))
            await encodes_begun(engine, 1)
            failed = await refused(stub.Embed(then))
            held.set()
            await first
        assert read(failed).metadata.get("resource", "") == resource
        return failed

    provoke.__name__ = resource
    provokes("RESOURCE_EXHAUSTED", "OVERLOADED")(provoke)


overloaded("calls", embed(), embed(1), admission={"embed": 1})
overloaded("request_bytes", embed(), embed(1), admission={"request_bytes": 12_000})
ahead = (embed(prefetch=True), embed(1, prefetch=True))
overloaded("prefetch", *ahead, admission={"prefetch": 1})
overloaded("prefetch_bytes", *ahead, admission={"prefetch_bytes": 10_000})
overloaded("", embed(), embed(1), store={"capacity_bytes": 2 << 20})


@provokes("UNAVAILABLE", "STORE_UNAVAILABLE")
async def _shared_cache_away(_: Kit) -> Any:
    (port,) = free_ports(1)
    nodes = {"nodes": f"127.0.0.1:{port}"}
    return await answer(predict(embedding_id="0" * 64), cache=nodes)


async def list_models(
    address: str, credentials: grpc.ChannelCredentials | None = None, *options: Any
) -> grpc.aio.AioRpcError:
    """Ask over a connection of its own, which fails."""
    options = (OWN_POOL, *options)
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        return await refused(Stub(channel).ListModels(LIST))


@provokes("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max")
async def _small_client(_: Kit) -> Any:
    async with running(settings_with(), engine=FakeEngine()) as service:
        return await list_models(service.address, None, ("grpc.max_receive_message_length", 10))


@provokes("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max")
async def _modest_client(_: Kit) -> Any:
    options = [OWN_POOL, ("grpc.max_send_message_length", 1000)]
    async with channel_of(options=options) as channel:
        return await refused(Stub(channel).Embed(embed()))


@provokes("RESOURCE_EXHAUSTED", "metadata size exceeds hard limit")
async def _much_metadata(_: Kit) -> Any:
    async with serving(engine=FakeEngine()) as (_service, stub):
        # Until the client knows the server's limit it may send more.
        await stub.ListModels(LIST)
        return await refused(stub.ListModels(LIST, metadata=(("a", "x" * 60_000),)))


@provokes("RESOURCE_EXHAUSTED", "are kept for other tenants")
async def _many_watches(kit: Kit) -> Any:
    kit.patch.setattr(public_services, "MAX_CALLS", 8)
    async with channel_of() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(HEALTH) for _ in range(6)]
        for watch in watches:
            await watch.read()
        return await refused(stub.Watch(HEALTH))


@provokes("UNAVAILABLE", "Connection refused")
async def _nothing_listens(_: Kit) -> Any:
    (port,) = free_ports(1)
    return await list_models(f"127.0.0.1:{port}")


@provokes("UNAVAILABLE", "errors resolving")
async def _no_such_name(_: Kit) -> Any:
    # A name server that is not there answers nothing either.
    (port,) = free_ports(1)
    return await list_models(f"dns://127.0.0.1:{port}/samserve.invalid:1")


async def over_tls(
    kit: Kit, credentials: grpc.ChannelCredentials | None, name: str = "localhost", **tls: Any
) -> Any:
    """Connect to a server with TLS, in vain."""
    settings = settings_with(tls={**kit.pem(name), **tls})
    async with running(settings, engine=FakeEngine()) as service:
        address = service.address.replace("127.0.0.1", "localhost")
        return await list_models(address, credentials)


@provokes("UNAVAILABLE", "Socket closed")
async def _plain_at_tls(kit: Kit) -> Any:
    return await over_tls(kit, None)


@provokes("UNAVAILABLE", "Socket closed")
async def _no_client_certificate(kit: Kit) -> Any:
    ca = kit.folder / "clients.crt"
    ca.write_bytes(kit.authority.cert_pem.bytes())
    return await over_tls(kit, channel_credentials(kit.authority), client_ca_file=ca)


@provokes("UNAVAILABLE", "Socket closed")
async def _too_many_connections(_: Kit) -> Any:
    settings = settings_with(server={"connections": 1})
    async with serving(settings, engine=FakeEngine()) as (service, stub):
        await stub.ListModels(LIST)
        return await list_models(service.address)


@provokes("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED")
async def _not_trusted(kit: Kit) -> Any:
    return await over_tls(kit, channel_credentials(trustme.CA()))


@provokes("UNAVAILABLE", "Hostname Verification Check failed")
async def _other_name(kit: Kit) -> Any:
    return await over_tls(kit, channel_credentials(kit.authority), "elsewhere.test")


@provokes("UNAVAILABLE", "WRONG_VERSION_NUMBER")
async def _tls_at_plain(kit: Kit) -> Any:
    async with running(settings_with(), engine=FakeEngine()) as service:
        return await list_models(service.address, channel_credentials(kit.authority))


@provokes("UNAVAILABLE", "Too many pings")
async def _pings(_: Kit) -> Any:
    options = [
        *UNLIMITED,
        ("grpc.keepalive_time_ms", 10),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_sent_ping_interval_without_data_ms", 10),
    ]
    engine = HeldEngine()
    async with channel_of(engine, options) as channel:
        return await refused(Stub(channel).Embed(embed()))


@provokes("UNAVAILABLE", "Cancelling all calls")
async def _shutdown(_: Kit) -> Any:
    engine = HeldEngine()
    server = running(settings_with(server={"grace_s": 0.1}), engine=engine)
    service = await server.__aenter__()
    async with stub_of(service.address) as stub:
        failing = asyncio.create_task(refused(stub.Embed(embed())))
        await engine.waiting.wait()
        await server.__aexit__(None, None, None)
        return await failing


@provokes("UNAVAILABLE", "this has been open for long")
async def _long_watch(kit: Kit) -> Any:
    kit.patch.setattr(public_services, "LIFETIME_S", 0.1)
    async with channel_of() as channel:
        return await refused(health_pb2_grpc.HealthStub(channel).Watch(HEALTH))

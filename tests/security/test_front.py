"""The front proxy for untrusted networks: Envoy with `examples/envoy.yaml`."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import psutil
import pytest
import trustme
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.envoy.front import EnvoyFront
from harness.gateway import GatewayServer
from harness.program import DIRECT
from tests import sample_images
from tests.conftest import UNLIMITED
from tests.rpc.errors import failure_of
from tests.security import floods, http2
from tests.security.credentials import KeyFile, Pem, bearer, write_pem
from tests.security.floods import PREDICT
from tests.support.waiting import TIMEOUT_S, until

pytestmark = pytest.mark.slow

MIB = 1 << 20
NAME = "samserve.test"
REQUEST = pb.PredictRequest(
    image=pb.Image(encoded=sample_images.png(40, 60)), prompts=[sample_images.point_prompt(5, 5)]
)


@dataclass(frozen=True)
class Front:
    """Envoy, the gateway behind it, a credential, and the CA of Envoy's certificate."""

    envoy: EnvoyFront
    gateway: GatewayServer
    key: tuple[tuple[str, str], ...]
    authority: trustme.CA
    pem: Pem

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[SegmentationServiceStub]:
        credentials = grpc.ssl_channel_credentials(self.authority.cert_pem.bytes())
        options = [*UNLIMITED, ("grpc.ssl_target_name_override", NAME)]
        target = self.envoy.target
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            yield SegmentationServiceStub(channel)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TLS connection without a gRPC client."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        context.set_alpn_protocols(["h2"])
        host, port = self.envoy.target.rsplit(":", 1)
        return await asyncio.open_connection(host, int(port), ssl=context, server_hostname=NAME)

    def received(self) -> int:
        """Return the bytes that Envoy has sent to the gateway."""
        with DIRECT.open(f"{self.envoy.url}/stats?filter=cluster.samserve.upstream_cx_tx") as got:
            text = got.read().decode()
        (line,) = (line for line in text.splitlines() if "tx_bytes_total" in line)
        return int(line.rpartition(":")[2])

    def rss(self) -> int:
        return int(psutil.Process(self.gateway.pid).memory_info().rss)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    key_file = KeyFile(folder / "keys.toml")
    key = bearer(key_file.add("acme", "embed", "predict"))
    pem = write_pem(folder / "tls", authority.issue_cert(NAME))
    settings = {"engine.kind": "fake", "auth.api_keys_file": key_file.path, "log.format": "json"}
    with GatewayServer(settings) as gateway:
        port = int(gateway.target.rpartition(":")[2])
        with EnvoyFront(port, pem.cert, pem.key) as envoy:
            yield Front(envoy, gateway, key, authority, pem)


async def test_calls_pass_through_the_front_proxy(front: Front) -> None:
    async with front.stub() as stub:
        metadata = (*front.key, ("x-request-id", "mine-1"))
        call = stub.Predict(REQUEST, metadata=metadata, timeout=TIMEOUT_S)
        response = await call
        trailing = dict(await call.trailing_metadata())
        unauthenticated = await failure_of(stub.Predict(REQUEST))
        large = pb.EmbedRequest(image=pb.Image(encoded=bytes(8 * MIB)))
        unreadable = await failure_of(stub.Embed(large, metadata=front.key))
        long = await failure_of(
            stub.Predict(REQUEST, metadata=(("authorization", "x" * (20 << 10)),))
        )

    assert response.results
    assert trailing["x-request-id"] == "mine-1"
    assert unauthenticated.reason == "UNAUTHENTICATED"
    assert unreadable.reason == "IMAGE_UNREADABLE"
    assert long.reason == "METADATA_TOO_LARGE"


@pytest.mark.parametrize("attack", ["continuations", "tiny fields"])
async def test_endless_headers_do_not_pass_the_front_proxy(front: Front, attack: str) -> None:
    async with front.stub() as stub:
        await stub.Predict(REQUEST, metadata=front.key, timeout=TIMEOUT_S)
    received, rss = front.received(), front.rss()
    frames = {
        "continuations": floods.continuations(NAME, 20 * MIB),
        "tiny fields": floods.tiny_fields(NAME, 16, 500_000),
    }[attack]
    reader, writer = await front.open()
    ping = http2.frame(http2.PING, 0, 0, bytes(8))
    sending = asyncio.create_task(floods.send(writer, itertools.chain(frames, [ping])))
    async with asyncio.timeout(TIMEOUT_S):
        # Until Envoy closes the connection, or has read all of it.
        await http2.read_ping_ack(reader)
    sending.cancel()
    writer.close()

    # Only pings to the gateway.
    assert front.received() - received < 1000
    assert front.rss() - rss < 8 * MIB
    async with front.stub() as stub:
        await stub.Predict(REQUEST, metadata=front.key, timeout=TIMEOUT_S)


async def test_the_front_proxy_ends_calls_with_unread_responses(front: Front) -> None:
    data = REQUEST.SerializeToString()
    message = http2.frame(http2.DATA, 1, 1, b"\0" + len(data).to_bytes(4, "big") + data)
    port = int(front.gateway.target.rpartition(":")[2])
    with EnvoyFront(port, front.pem.cert, front.pem.key, idle_timeout_s=0.5) as envoy:
        reader, writer = await replace(front, envoy=envoy).open()
        await http2.greet(reader, writer, {http2.INITIAL_WINDOW_SIZE: 0})
        key = dict(front.key)["authorization"]
        block = http2.call_block(PREDICT, NAME) + http2.literal("authorization", key)
        writer.write(http2.headers_in_frames(block, 1, ends=True) + message)
        async with asyncio.timeout(TIMEOUT_S):
            assert await http2.status_of_stream(reader) == "RESET"
        writer.close()


async def test_the_front_proxy_rejects_other_services(front: Front) -> None:
    await until(lambda: front.received() > 0)
    received = front.received()
    reader, writer = await front.open()
    writer.write(http2.hello() + http2.call_headers("/admin/Secrets", NAME))
    async with asyncio.timeout(TIMEOUT_S):
        status = await http2.status_of_stream(reader)
    writer.close()

    assert status == "UNIMPLEMENTED"
    assert front.received() - received < 1000

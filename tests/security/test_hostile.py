"""Hostile clients: the server continues to serve others, and its memory use recovers."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import numpy as np
import psutil
import pytest
from samserve.app import running
from samserve.calls import slow_clients
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.gateway import GatewayServer
from tests import sample_images
from tests.conftest import UNLIMITED, settings_with, stub_of
from tests.rpc.errors import finish
from tests.security import http2
from tests.support.waiting import TIMEOUT_S, until

MIB = 1 << 20
# Short enough for a test, and long enough for well-behaved clients.
SERVER_TIMEOUT_S = 1.5
SETTINGS = {
    "engine.kind": "fake",
    "server.receive_timeout_s": SERVER_TIMEOUT_S,
    "server.send_timeout_s": SERVER_TIMEOUT_S,
    "server.idle_timeout_s": SERVER_TIMEOUT_S,
    "server.handshake_timeout_s": SERVER_TIMEOUT_S,
    "limits.max_request_bytes": MIB,
    "cache.local.capacity_bytes": 16 * MIB,
    "log.level": "info",
    "log.format": "json",
}
PREDICT = "/samserve.v1.SegmentationService/Predict"


def start_gateway(**changes: object) -> GatewayServer:
    return GatewayServer({**SETTINGS, **changes})


def rss(server: GatewayServer) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


async def call_repeatedly(address: str, times: int = 5) -> None:
    """Check that other clients are served, each over its own connection."""
    for number in range(times):
        async with stub_of(address) as stub:
            image, prompt = sample_images.image(40, 60, number), sample_images.point_prompt(5, 5)
            request = pb.PredictRequest(image=image, prompts=[prompt])
            assert (await stub.Predict(request, timeout=TIMEOUT_S)).results


async def check_recovery(
    server: GatewayServer,
    attack: Callable[[], Awaitable[None]],
    regular_work: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Attack while other clients call; check that memory returns to 1.2 times its previous use.

    The previous use is measured after the same kind of work of regular clients.  A leak repeats
    with each attack, while memory that the allocator keeps does not: therefore at least one of
    three attacks must leave no more than that behind.
    """
    await asyncio.gather(*(call_repeatedly(server.target) for _ in range(4)))
    if regular_work is not None:
        for _ in range(2):
            await asyncio.gather(regular_work(), regular_work())
    allowed = rss(server) // 5
    left: list[int] = []
    while len(left) < 3 and (not left or left[-1] > allowed):
        before = rss(server)
        await attack()
        await call_repeatedly(server.target)
        with contextlib.suppress(AssertionError):
            await until(lambda b=before: rss(server) - b <= allowed, timeout_s=20, poll_s=0.1)
        left.append(rss(server) - before)
    assert left[-1] <= allowed, (
        f"{[n // MIB for n in left]} MiB are left, {allowed // MIB} are allowed"
    )


@pytest.mark.slow
async def test_slow_requests_end_after_the_receive_timeout() -> None:
    with start_gateway() as server:

        async def attack() -> None:
            async with AsyncExitStack() as stack:
                readers = [
                    await stack.enter_async_context(slow_request(server.target)) for _ in range(100)
                ]
                await call_repeatedly(server.target)
                # Longer than the server's timeout, shorter than the call's deadline.
                async with asyncio.timeout(TIMEOUT_S):
                    ended = await asyncio.gather(
                        *(http2.status_of_stream(reader) for reader in readers)
                    )
            assert set(ended) <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
            # The default of admission.max_slow_requests.
            assert ended.count("DEADLINE_EXCEEDED") >= 64

        await check_recovery(server, attack)


@asynccontextmanager
async def started_call(
    address: str, path: str, nbytes: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a call and send the header of a message of so many bytes."""
    reader, writer = await http2.connected(address, b"")
    await http2.greet(reader, writer)
    writer.write(http2.call_headers(path, address))
    writer.write(http2.frame(http2.DATA, 0, 1, b"\0" + nbytes.to_bytes(4, "big")))
    try:
        yield reader, writer
    finally:
        writer.close()


@asynccontextmanager
async def slow_request(address: str) -> AsyncIterator[asyncio.StreamReader]:
    """Open a call whose request of 512 KiB arrives byte by byte."""
    async with started_call(address, PREDICT, MIB // 2) as (reader, writer):

        async def send_slowly() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(http2.frame(http2.DATA, 0, 1, b"\n"))
                    await writer.drain()
                    await asyncio.sleep(0.3)

        sending = asyncio.create_task(send_slowly())
        try:
            yield reader
        finally:
            sending.cancel()


SMALL_METHODS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/samserve.v1.SegmentationService/ListModels",
    "/samserve.v1.SegmentationService/DeleteEmbedding",
)


@pytest.mark.slow
async def test_large_requests_to_methods_without_images_end_early() -> None:
    # No other timeout ends them so early.
    timeouts = {"server.receive_timeout_s": 600, "deadlines.other_s": 600}
    with start_gateway(**{"limits.max_request_bytes": 64 * MIB, **timeouts}) as server:

        async def send_half(path: str) -> tuple[str, str]:
            async with started_call(server.target, path, 60 * MIB) as (reader, writer):
                # As much as the initial HTTP/2 windows allow, and never the rest.
                for _ in range(3):
                    writer.write(http2.frame(http2.DATA, 0, 1, bytes(16384)))
                return path, await http2.status_of_stream(reader)

        async def attack() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                ended = await asyncio.gather(*(send_half(path) for path in SMALL_METHODS * 12))
            for path in SMALL_METHODS:
                statuses = {status for of, status in ended if of == path}
                assert "DEADLINE_EXCEEDED" in statuses, path
                assert statuses <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}, path

        await check_recovery(server, attack)


async def test_a_slow_request_that_ends_releases_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    settings = settings_with(server={"receive_timeout_s": 0.1}, admission={"max_slow_requests": 1})
    async with running(settings) as service:
        for _ in range(2):  # the first releases its slot
            async with slow_request(service.address) as reader, asyncio.timeout(TIMEOUT_S):
                assert await http2.status_of_stream(reader) == "DEADLINE_EXCEEDED"


@pytest.mark.slow
async def test_a_thousand_idle_connections_are_closed() -> None:
    allow_files(4096)
    with start_gateway() as server:

        async def attack() -> None:
            connections = [await http2.connected(server.target, b"") for _ in range(1000)]
            # Half of them send nothing.
            for _, writer in connections[::2]:
                writer.write(http2.hello())
            await call_repeatedly(server.target)
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(closed(reader) for reader, _ in connections))
            for _, writer in connections:
                writer.close()

        await check_recovery(server, attack)


async def closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


async def test_connections_over_the_limit_are_not_accepted() -> None:
    async with running(
        settings_with(server={"max_connections": 20, "idle_timeout_s": 600})
    ) as service:
        connections = [await http2.connected(service.address) for _ in range(30)]
        async with asyncio.timeout(TIMEOUT_S):
            greeted = await asyncio.gather(*(http2.read_frame(reader) for reader, _ in connections))
        assert 15 <= sum(frame is not None for frame in greeted) <= 21
        for _, writer in connections:
            writer.close()
        await until(lambda: is_served(service.address))


async def is_served(address: str) -> bool:
    try:
        await call_repeatedly(address, 1)
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_the_server_announces_max_concurrent_streams() -> None:
    async with running(settings_with(server={"max_concurrent_streams": 77})) as service:
        reader, writer = await http2.connected(service.address)
        async with asyncio.timeout(TIMEOUT_S):
            frame = await http2.read_frame(reader)
        writer.close()

    assert frame is not None
    assert frame.kind == http2.SETTINGS
    pairs = [frame.payload[at : at + 6] for at in range(0, len(frame.payload), 6)]
    announced = {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}
    assert announced[http2.MAX_CONCURRENT_STREAMS] == 77


@pytest.mark.slow
async def test_an_automask_stream_that_is_not_read_ends() -> None:
    with start_gateway(**{"admission.max_concurrent_automask": 2}) as server:
        # Masks of one bit per pixel, larger than any HTTP/2 window.
        request = pb.AutoMaskRequest(
            image=pb.Image(encoded=sample_images.encode(np.zeros((2500, 2500, 3), np.uint8))),
            output_mode=pb.OUTPUT_MODE_BINARY_MASK,
            options=pb.AutoMaskOptions(points_per_side=12),
        )

        async def read_all() -> None:
            async with stub_of(server.target) as stub:
                call = stub.AutoMask(request)
                assert sum([message.ByteSize() async for message in call]) > 10 * MIB

        async def attack() -> None:
            async with AsyncExitStack() as stack:
                calls = []
                for _ in range(2):
                    channel = await stack.enter_async_context(
                        grpc.aio.insecure_channel(server.target, options=UNLIMITED)
                    )
                    # Only its first message is read.
                    call = SegmentationServiceStub(channel).AutoMask(request)
                    await call.read()
                    calls.append(call)
                await call_repeatedly(server.target)
                # Their slots are released while both clients are still connected.
                await until(lambda: admits_automask(server), poll_s=0.2)

        await check_recovery(server, attack, read_all)


async def admits_automask(server: GatewayServer) -> bool:
    """Whether an AutoMask gets a slot."""
    async with stub_of(server.target) as stub:
        request = pb.AutoMaskRequest(
            image=pb.Image(encoded=sample_images.png(40, 60)),
            options=pb.AutoMaskOptions(points_per_side=2),
        )
        try:
            await finish(stub.AutoMask(request))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return False
    return True


@pytest.mark.slow
async def test_a_hundred_oversized_messages_are_rejected() -> None:
    request = pb.EmbedRequest(image=pb.Image(encoded=bytes(8 * MIB)))

    async def send(stub: SegmentationServiceStub, count: int) -> list[grpc.StatusCode]:
        codes = []
        for _ in range(count):
            try:
                await stub.Embed(request)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
        return codes

    with start_gateway() as server:

        async def send_at_once(count: int) -> list[grpc.StatusCode]:
            async with stub_of(server.target) as stub:
                sent = await asyncio.gather(*(send(stub, count) for _ in range(10)))
            return [code for codes in sent for code in codes]

        async def attack() -> None:
            codes, _ = await asyncio.gather(send_at_once(10), call_repeatedly(server.target))
            assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 100

        # How many messages are in flight at once depends on the machine: some are sent before the
        # memory is measured.  A leak per message would show after a hundred.
        await check_recovery(server, attack, lambda: send_at_once(1))


def bomb(mebibytes: int) -> bytes:
    """Return so many MiB of zeros, compressed with gzip."""
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(mebibytes)) + compressor.flush()


async def test_the_message_limit_applies_to_the_decompressed_size() -> None:
    message = bomb(300)
    assert len(message) < MIB

    with start_gateway() as server:

        async def attack() -> None:
            peak = rss(server)
            reader, writer = await http2.connected(server.target)
            headers = {"grpc-encoding": "gzip"}
            writer.write(http2.call_headers(PREDICT, server.target, **headers))
            data = b"\1" + len(message).to_bytes(4, "big") + message
            for at in range(0, len(data), 16384):
                writer.write(http2.frame(http2.DATA, 0, 1, data[at : at + 16384]))
            ending = asyncio.create_task(http2.status_of_stream(reader))
            async with asyncio.timeout(TIMEOUT_S):
                while not ending.done():
                    peak = max(peak, rss(server))
                    await asyncio.sleep(0.01)
            writer.close()
            assert ending.result() in ("RESOURCE_EXHAUSTED", "RESET")
            grown.append(peak - before)

        grown: list[int] = []
        before = rss(server)
        await check_recovery(server, attack)

    assert grown[0] < 100 * MIB, f"{grown[0] / MIB:.0f} MiB"

"""Clients that mean harm: the server goes on answering others, and its memory comes back."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import psutil
import pytest
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import UNLIMITED
from tests.security import http2

MIB = 1 << 20
# Short, so that a test sees them pass.
PATIENCE_S = 1.5
SETTINGS = {
    "engine.kind": "fake",
    "server.port": 0,
    "server.admin_port": 0,
    "server.receive_s": PATIENCE_S,
    "server.send_s": PATIENCE_S,
    "server.idle_s": PATIENCE_S,
    "server.handshake_s": PATIENCE_S,
    "server.streams": 77,
    "limits.request_bytes": MIB,
    "store.capacity_bytes": 16 * MIB,
    "log.level": "warning",
    "log.format": "json",
}
PREDICT = "/samserve.v1.SegmentationService/Predict"


@dataclass
class Victim:
    """A server in a process of its own."""

    process: psutil.Process
    address: str

    @property
    def host_port(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host, int(port)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.host_port)

    def rss(self) -> int:
        return int(self.process.memory_info().rss)


@asynccontextmanager
async def victim(**changes: object) -> AsyncIterator[Victim]:
    port = free_port()
    settings = {**SETTINGS, "server.port": port, **changes}
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "samserve", "serve", *flags),
        stderr=asyncio.subprocess.DEVNULL,
    )
    server = Victim(psutil.Process(process.pid), f"127.0.0.1:{port}")
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
        yield server
        assert process.returncode is None, "the server has died"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def answers(server: Victim, times: int = 5) -> None:
    """See that other clients are answered, each with a connection of its own."""
    for number in range(times):
        async with grpc.aio.insecure_channel(server.address, options=UNLIMITED) as channel:
            request = pb.PredictRequest(
                image=pb.Image(encoded=pictures.png(40, 60, number)),
                prompts=[pictures.click(5, 5)],
            )
            answer = await SegmentationServiceStub(channel).Predict(request, timeout=20)
            assert answer.results


async def survives(
    server: Victim,
    attack: Callable[[], Awaitable[None]],
    honest_work: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Attack while others call, and see the memory come back to 1.2 times what it was.

    What it was is what the same kind of work leaves behind when honest clients ask for it.
    """
    await asyncio.gather(*(answers(server, 10) for _ in range(4)))
    if honest_work is not None:
        for _ in range(2):
            await asyncio.gather(honest_work(), honest_work())
    before = server.rss()
    await attack()
    await answers(server)
    for _ in range(150):
        if server.rss() <= 1.2 * before:
            return
        await asyncio.sleep(0.2)
    pytest.fail(f"{server.rss() / MIB:.0f} MiB are left of {before / MIB:.0f} MiB before")


@pytest.mark.slow
async def test_a_request_that_trickles_in_is_given_up() -> None:
    async with victim() as server:

        async def attack() -> None:
            async with AsyncExitStack() as stack:
                loris = [await stack.enter_async_context(trickling(server)) for _ in range(100)]
                await answers(server)
                # Longer than the server's patience, shorter than the call's deadline.
                async with asyncio.timeout(20):
                    ended = await asyncio.gather(
                        *(http2.status_of_stream(reader) for reader in loris)
                    )
            assert set(ended) == {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
            # So many may be slow at once; the others are told at once to come back.
            assert ended.count("DEADLINE_EXCEEDED") == 64

        await survives(server, attack)


@asynccontextmanager
async def trickling(server: Victim) -> AsyncIterator[asyncio.StreamReader]:
    """A call whose request of half a megabyte arrives a byte at a time."""
    reader, writer = await server.connect()
    writer.write(http2.hello() + http2.call_headers(PREDICT, server.address))
    message = b"\0" + (MIB // 2).to_bytes(4, "big")
    writer.write(http2.frame(http2.DATA, 0, 1, message))

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(http2.frame(http2.DATA, 0, 1, b"\n"))
                await writer.drain()
                await asyncio.sleep(0.3)

    feeding = asyncio.create_task(trickle())
    try:
        yield reader
    finally:
        feeding.cancel()
        writer.close()


HEALTH = "/grpc.health.v1.Health"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{HEALTH}/Check", "DEADLINE_EXCEEDED"),
        (f"{HEALTH}/Watch", "DEADLINE_EXCEEDED"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "DEADLINE_EXCEEDED"),
        ("/samserve.v1.SegmentationService/ListModels", "DEADLINE_EXCEEDED"),
        ("/samserve.v1.SegmentationService/DeleteEmbedding", "DEADLINE_EXCEEDED"),
    ],
)
@pytest.mark.slow
async def test_large_requests_to_small_methods_are_not_waited_for(path: str, status: str) -> None:
    # Nothing else ends them so soon.
    patience = {"server.receive_s": 60, "deadlines.other_s": 60}
    changes = {"limits.request_bytes": 64 * MIB, **patience}
    async with victim(**changes) as server:

        async def attack() -> None:
            async with AsyncExitStack() as stack:
                halves = [
                    await stack.enter_async_context(half_sent(server, path, 60 * MIB))
                    for _ in range(12)
                ]
                async with asyncio.timeout(20):
                    ended = await asyncio.gather(
                        *(http2.status_of_stream(reader) for reader in halves)
                    )
            assert set(ended) <= {status, "RESOURCE_EXHAUSTED"}

        await survives(server, attack)


@asynccontextmanager
async def half_sent(server: Victim, path: str, nbytes: int) -> AsyncIterator[asyncio.StreamReader]:
    """A call with half of a message, as fast as the server takes it, and never the rest."""
    reader, writer = await server.connect()
    writer.write(http2.hello() + http2.call_headers(path, server.address))
    writer.write(http2.frame(http2.DATA, 0, 1, b"\0" + nbytes.to_bytes(4, "big")))
    # What the first windows of HTTP/2 take.
    for _ in range(3):
        writer.write(http2.frame(http2.DATA, 0, 1, bytes(16384)))
    try:
        yield reader
    finally:
        writer.close()


async def test_places_for_slow_requests_are_bounded() -> None:
    changes = {"admission.slow_requests": 3, "server.receive_s": 4}
    async with victim(**changes) as server:
        async with AsyncExitStack() as stack:
            loris = [await stack.enter_async_context(trickling(server)) for _ in range(10)]
            async with asyncio.timeout(20):
                ended = await asyncio.gather(*(http2.status_of_stream(reader) for reader in loris))
        await answers(server)

    assert sorted(ended) == ["DEADLINE_EXCEEDED"] * 3 + ["RESOURCE_EXHAUSTED"] * 7


@pytest.mark.parametrize("says", ["nothing", "hello"])
@pytest.mark.slow
async def test_a_thousand_idle_connections_are_closed(says: str) -> None:
    allow_files(4096)
    async with victim() as server:

        async def attack() -> None:
            connections = [await server.connect() for _ in range(1000)]
            for _, writer in connections:
                writer.write(http2.hello() if says == "hello" else b"")
            await answers(server)
            async with asyncio.timeout(20):
                await asyncio.gather(*(closed(reader) for reader, _ in connections))
            for _, writer in connections:
                writer.close()

        await survives(server, attack)


async def closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


def allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


async def test_no_more_connections_than_allowed_are_taken() -> None:
    async with victim(**{"server.connections": 20, "server.idle_s": 60}) as server:
        connections = []
        for _ in range(30):
            reader, writer = await server.connect()
            writer.write(http2.hello())
            connections.append((reader, writer))
        greeted = await asyncio.gather(
            *(asyncio.wait_for(http2.read_frame(reader), 10) for reader, _ in connections)
        )
        assert 15 <= sum(frame is not None for frame in greeted) <= 21
        for _, writer in connections:
            writer.close()
        async with asyncio.timeout(20):
            while not await is_answered(server):
                await asyncio.sleep(0.1)


async def is_answered(server: Victim) -> bool:
    try:
        await answers(server, 1)
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_the_server_says_how_many_calls_a_connection_may_have() -> None:
    async with victim() as server:
        reader, writer = await server.connect()
        writer.write(http2.hello())
        frame = await asyncio.wait_for(http2.read_frame(reader), 10)
        writer.close()

    assert frame is not None
    assert frame.kind == http2.SETTINGS
    pairs = [frame.payload[at : at + 6] for at in range(0, len(frame.payload), 6)]
    said = {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}
    assert said[http2.MAX_CONCURRENT_STREAMS] == 77


@pytest.mark.slow
async def test_a_client_that_never_reads_its_stream_is_given_up() -> None:
    async with victim(**{"admission.automask": 2}) as server:
        # Masks of one bit per pixel, more than any window of HTTP/2 takes in.
        request = pb.AutoMaskRequest(
            image=pb.Image(encoded=pictures.file_of(np.zeros((2500, 2500, 3), np.uint8))),
            output_mode=pb.OUTPUT_MODE_BINARY_MASK,
            options=pb.AutoMaskOptions(points_per_side=20),
        )

        async def read_all() -> None:
            async with grpc.aio.insecure_channel(server.address, options=UNLIMITED) as channel:
                call = SegmentationServiceStub(channel).AutoMask(request)
                assert sum([message.ByteSize() async for message in call]) > 10 * MIB

        async def attack() -> None:
            async with AsyncExitStack() as stack:
                calls = []
                for _ in range(2):
                    channel = await stack.enter_async_context(
                        grpc.aio.insecure_channel(server.address, options=UNLIMITED)
                    )
                    # Its first message is taken, and then nothing more.
                    call = SegmentationServiceStub(channel).AutoMask(request)
                    await call.read()
                    calls.append(call)
                await answers(server)
                # Their places are free again while both clients are still there.
                async with asyncio.timeout(60):
                    while not await searches(server):
                        await asyncio.sleep(0.2)

        await survives(server, attack, read_all)


async def searches(server: Victim) -> bool:
    """Whether there is a place for an AutoMask."""
    async with grpc.aio.insecure_channel(server.address, options=UNLIMITED) as channel:
        request = pb.AutoMaskRequest(
            image=pb.Image(encoded=pictures.png(40, 60)),
            options=pb.AutoMaskOptions(points_per_side=2),
        )
        try:
            async for _ in SegmentationServiceStub(channel).AutoMask(request):
                pass
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return False
    return True


@pytest.mark.slow
async def test_500_oversized_messages_are_refused() -> None:
    request = pb.EmbedRequest(image=pb.Image(encoded=bytes(8 * MIB)))

    async def send(stub: SegmentationServiceStub, codes: list[grpc.StatusCode]) -> None:
        for _ in range(50):
            try:
                await stub.Embed(request)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())

    async with victim() as server:

        async def attack() -> None:
            codes: list[grpc.StatusCode] = []
            async with grpc.aio.insecure_channel(server.address, options=UNLIMITED) as channel:
                stub = SegmentationServiceStub(channel)
                await asyncio.gather(answers(server), *(send(stub, codes) for _ in range(10)))
            assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 500

        await survives(server, attack)


async def test_a_compressed_message_is_measured_by_what_it_becomes() -> None:
    bomb = gzip.compress(pb.EmbedRequest(model="x" * (300 * MIB)).SerializeToString(), 6)
    assert len(bomb) < MIB

    async with victim() as server:

        async def attack() -> None:
            peak = server.rss()
            reader, writer = await server.connect()
            writer.write(http2.hello())
            headers = {"grpc-encoding": "gzip"}
            writer.write(http2.call_headers(PREDICT, server.address, **headers))
            data = b"\1" + len(bomb).to_bytes(4, "big") + bomb
            for at in range(0, len(data), 16384):
                writer.write(http2.frame(http2.DATA, 0, 1, data[at : at + 16384]))
            ending = asyncio.create_task(http2.status_of_stream(reader))
            async with asyncio.timeout(60):
                while not ending.done():
                    peak = max(peak, server.rss())
                    await asyncio.sleep(0.01)
            writer.close()
            assert ending.result() in ("RESOURCE_EXHAUSTED", "RESET")
            grown.append(peak - before)

        grown: list[int] = []
        before = server.rss()
        await survives(server, attack)

    assert grown[0] < 100 * MIB, f"{grown[0] / MIB:.0f} MiB"

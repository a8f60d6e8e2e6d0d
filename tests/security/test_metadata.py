"""Limits on metadata: long credentials are accepted, and rejections are deterministic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samserve.app import running
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import failure_of
from tests.security import http2
from tests.support.waiting import TIMEOUT_S

LIMIT = 16 << 10
# Upper bound of the metadata that gRPC clients add.
OVERHEAD = 512
REPEATS = 40
Code = grpc.StatusCode


@asynccontextmanager
async def stubs() -> AsyncIterator[tuple[SegmentationServiceStub, health_pb2_grpc.HealthStub]]:
    """Start a server; yield the stubs of its service and its health over one connection."""
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield SegmentationServiceStub(channel), health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("nbytes", [9_000, 13_000, LIMIT - OVERHEAD])
async def test_a_credential_below_the_limit_is_always_accepted(nbytes: int) -> None:
    async with stubs() as (stub, health):
        credential = (("authorization", "Bearer " + "x" * nbytes),)
        for _ in range(REPEATS):
            await stub.ListModels(pb.ListModelsRequest(), metadata=credential)
            await health.Check(health_pb2.HealthCheckRequest(), metadata=credential)


async def test_metadata_over_the_limit_is_always_rejected_with_a_reason() -> None:
    async with stubs() as (stub, health):
        for nbytes in (LIMIT, LIMIT + 1000, 2 * LIMIT - 2 * OVERHEAD):
            credential = (("authorization", "x" * nbytes),)
            for _ in range(REPEATS // 4):
                call = stub.ListModels(pb.ListModelsRequest(), metadata=credential)
                failure = await failure_of(call)
                assert (failure.code, failure.reason) == (
                    Code.INVALID_ARGUMENT,
                    "METADATA_TOO_LARGE",
                )
                assert failure.metadata["limit"] == str(LIMIT)
                assert nbytes < int(failure.metadata["actual"]) < nbytes + OVERHEAD
                with pytest.raises(grpc.aio.AioRpcError, match="metadata_bytes allows 16384"):
                    await health.Check(health_pb2.HealthCheckRequest(), metadata=credential)


async def test_metadata_over_twice_the_limit_is_always_rejected_by_grpc() -> None:
    async with serving(settings_with()) as (_, stub):
        await stub.ListModels(pb.ListModelsRequest())
        for _ in range(REPEATS // 4):
            credential = (("authorization", "x" * 3 * LIMIT),)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListModels(pb.ListModelsRequest(), metadata=credential)
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            assert "size" in str(caught.value.details())
        # For many entries, gRPC returns no text.
        entries = [(f"x-{number:04}", "") for number in range(3 * LIMIT // 38)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(pb.ListModelsRequest(), metadata=entries)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "path", ["/samserve.v1.SegmentationService/ListModels", "/grpc.health.v1.Health/Check"]
)
async def test_the_limit_applies_to_clients_that_do_not_acknowledge_settings(path: str) -> None:
    """gRPC's own limit does not hold for a client that has not acknowledged it."""
    async with running(settings_with()) as service:
        block = http2.call_block(path, "localhost") + http2.literal("padding", "x" * (8 * LIMIT))
        # An empty message.
        message = http2.frame(http2.DATA, 1, 1, bytes(5))
        call = http2.headers_in_frames(block, 1, ends=True) + message
        reader, writer = await http2.connected(service.address, http2.hello() + call)
        async with asyncio.timeout(TIMEOUT_S):
            status = await http2.status_of_stream(reader)
        writer.close()

    # gRPC rejects some of these at random; none is admitted.
    assert status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


async def test_a_client_that_never_acknowledges_settings_is_disconnected() -> None:
    async with running(
        settings_with(server={"handshake_timeout_s": 0.5, "idle_timeout_s": 600})
    ) as service:
        reader, writer = await http2.connected(service.address)
        async with asyncio.timeout(TIMEOUT_S):
            while await http2.read_frame(reader) is not None:
                pass
        writer.close()

"""Undocumented behaviour of Triton that the gateway relies on, with the committed models."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as aio_client
from tritonclient.utils import InferenceServerException

from harness.triton.server import SHARED_MEMORY, TritonServer
from tests.engines.drawing import HELD_X
from tests.support.waiting import until
from tests.triton import other_user, queries
from tests.triton.servers import Holding

DECODER, HELD_DECODER = "sam_tiny_decoder", "fake_decoder"
A_GROUP = 54321


@dataclass
class Region:
    """A file in shared memory."""

    name: str
    memory: np.ndarray

    @property
    def path(self) -> Path:
        return SHARED_MEMORY / self.name


@contextlib.contextmanager
def region(size: int, mode: int = 0o600) -> Iterator[Region]:
    # Not a name of samserve, which removes its unlocked segments.
    name = f"triton-contract-{os.getpid()}-{time.monotonic_ns()}"
    descriptor = os.open(SHARED_MEMORY / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.fchmod(descriptor, mode)
        os.ftruncate(descriptor, size)
        yield Region(name, np.frombuffer(mmap.mmap(descriptor, size), np.uint8))
    finally:
        os.close(descriptor)
        (SHARED_MEMORY / name).unlink()


def held_prompts() -> queries.Tensors:
    """Return inputs of a run that does not end until the test releases it."""
    tensors = queries.prompts()
    tensors["point_coords"][0, 0, 0, 0] = HELD_X
    return tensors


@pytest.fixture
async def client(holding: Holding) -> AsyncIterator[aio_client.InferenceServerClient]:
    async with aio_client.InferenceServerClient(holding.server.grpc_address) as connection:
        yield connection


async def unregister(client: aio_client.InferenceServerClient, name: str) -> bool:
    """Unregister a region; return False if it is in use."""
    try:
        await client.unregister_system_shared_memory(name)
    except InferenceServerException as error:
        if "currently in use" not in error.message():
            raise
        return False
    return True


async def until_unregistered(client: aio_client.InferenceServerClient, name: str) -> None:
    await until(partial(unregister, client, name))


@pytest.mark.parametrize("cancelled", [False, True])
async def test_region_of_an_output_is_in_use_until_the_run_has_ended(
    client: aio_client.InferenceServerClient, holding: Holding, cancelled: bool
) -> None:
    size = 4 * 256 * 256 * 4
    with region(size) as written:
        await client.register_system_shared_memory("out", f"/{written.name}", size)
        output = aio_client.InferRequestedOutput("low_res_logits")
        output.set_shared_memory("out", size)
        inputs = queries.inline(held_prompts())
        request = asyncio.create_task(client.infer(HELD_DECODER, inputs, outputs=[output]))
        await holding.hold.begun()
        assert not await unregister(client, "out")
        assert not written.memory.any()
        if cancelled:
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            # No client waits for it, but it still runs and will still write.
            assert not await unregister(client, "out")
            assert not written.memory.any()
        holding.hold.release()
        await until_unregistered(client, "out")

        assert written.memory[-1024:].any()
        if not cancelled:
            await request


async def test_region_of_an_input_is_in_use_until_the_run_has_ended(
    client: aio_client.InferenceServerClient, holding: Holding
) -> None:
    tensors = held_prompts()
    embedding = tensors.pop("image_embedding")
    with region(embedding.nbytes) as given:
        given.memory[:] = embedding.reshape(-1).view(np.uint8)
        await client.register_system_shared_memory("in", f"/{given.name}", embedding.nbytes)
        source = aio_client.InferInput("image_embedding", list(embedding.shape), "FP16")
        source.set_shared_memory("in", embedding.nbytes)
        request = asyncio.create_task(
            client.infer(HELD_DECODER, [source, *queries.inline(tensors)])
        )
        await holding.hold.begun()

        assert not await unregister(client, "in")
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert not await unregister(client, "in")
        holding.hold.release()
        await until_unregistered(client, "in")

        assert "in" not in (await client.get_system_shared_memory_status()).regions


@pytest.mark.parametrize("priority", [1, 2])
async def test_requests_can_set_their_timeout_at_each_priority(
    triton: TritonServer, priority: int
) -> None:
    inputs = queries.inline(queries.prompts())

    async with aio_client.InferenceServerClient(triton.grpc_address) as client:
        with pytest.raises(InferenceServerException, match="Request timeout expired") as expired:
            await client.infer(DECODER, inputs, priority=priority, timeout=1)
        assert expired.value.status() == "StatusCode.UNAVAILABLE"

        await client.infer(DECODER, inputs, priority=priority, timeout=50_000_000)


@other_user.required
@pytest.mark.parametrize(
    ("groups", "mode", "possible"),
    [
        ([], 0o600, False),
        ([], 0o660, False),
        ([A_GROUP], 0o640, False),
        ([A_GROUP], 0o660, True),
    ],
)
def test_region_must_be_writable_for_the_user_of_the_server(
    groups: list[int], mode: int, possible: bool
) -> None:
    expectation = (
        contextlib.nullcontext()
        if possible
        else pytest.raises(InferenceServerException, match="Unable to open shared memory")
    )
    with (
        other_user.serving(groups) as server,
        queries.client(server) as client,
        region(4096, mode) as shared,
    ):
        os.chown(shared.path, 0, A_GROUP)
        with expectation:
            client.register_system_shared_memory("pool", f"/{shared.name}", 4096)

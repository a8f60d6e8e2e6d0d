"""Transport selection: users and groups, a remote Triton, exhausted memory, a newer Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from samserve.context import RequestContext
from samserve.engines.triton import engine as engine_module
from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import Unreachable
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.errors import EngineFailure, EngineUnavailable, MemoryExhausted
from samserve.memory.posix import SharedMemory, SharedSegment
from samserve.types import Transport
from structlog.testing import capture_logs

from harness.triton.server import TritonServer
from tests.engines.triton.services import encoded, opened, point_prompts, random_image, reserved
from tests.triton import other_user, servers

SHARED_GROUP, OTHER_GROUP = 54321, 54322


@pytest.fixture(scope="module")
def triton_of_other_user() -> Iterator[TritonServer]:
    with other_user.serving([SHARED_GROUP]) as server:
        yield server


@asynccontextmanager
async def regions_of(server: TritonServer, group: int | None) -> AsyncIterator[ShmRegions]:
    connection = TritonConnection(server.grpc_address, channels=1)
    regions = ShmRegions(connection, SharedMemory(group=group))
    try:
        yield regions
    finally:
        await regions.aclose()
        await connection.aclose()


@other_user.required
async def test_triton_of_another_user_shares_memory_through_a_group(
    triton_of_other_user: TritonServer,
) -> None:
    async with regions_of(triton_of_other_user, SHARED_GROUP) as regions:
        await regions.probe()
        assert regions.accepted


@other_user.required
@pytest.mark.parametrize("group", [None, OTHER_GROUP])
async def test_triton_of_another_user_and_group_rejects_shared_memory(
    group: int | None, triton_of_other_user: TritonServer
) -> None:
    async with regions_of(triton_of_other_user, group) as regions:
        await regions.probe()
        assert not regions.accepted
        assert "Unable to open shared memory region" in regions.rejection


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the gateway's segments from Triton, as if it ran on another machine."""
    monkeypatch.setattr(engine_module, "SharedMemory", partial(SharedMemory, tmp_path))


@pytest.mark.usefixtures("remote")
async def test_remote_triton_receives_messages_and_the_reason_is_logged() -> None:
    server = servers.drawing()
    with capture_logs() as logs:
        async with opened(server.grpc_address, shared_memory="auto") as (engine, cache):
            assert engine.transport is Transport.MESSAGE
            slot = await encoded(engine, cache)
            output = await engine.decode(
                "fake", slot.as_embedding(), point_prompts(), RequestContext()
            )
            assert output.low_res_logits.any()

    (entry,) = [entry for entry in logs if entry["event"] == "connected to Triton"]
    assert entry["transport"] == "message"
    assert "Unable to open shared memory region" in entry["reason"]


@pytest.mark.usefixtures("remote")
async def test_startup_fails_if_required_shared_memory_is_unavailable() -> None:
    server = servers.drawing()
    with pytest.raises(EngineUnavailable, match="required but unavailable"):
        async with opened(server.grpc_address, shared_memory="required"):
            pass


async def test_engine_uses_messages_if_the_arena_does_not_fit_into_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = servers.drawing()
    monkeypatch.setattr(SharedSegment, "commit", raise_exhausted)
    with capture_logs() as logs:
        async with opened(server.grpc_address, shared_memory="auto") as (engine, cache):
            slot = await reserved(engine, cache, "x")
            assert engine.transport is Transport.MESSAGE
            await engine.encode("fake", random_image(), slot, RequestContext())
            assert slot.tensors["image_embedding"].any()
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "1000 bytes free" in warnings[0]["reason"]

    async with opened(server.grpc_address, shared_memory="required") as (engine, cache):
        with pytest.raises(MemoryExhausted):
            await reserved(engine, cache, "x")


def raise_exhausted(segment: SharedSegment, _offset: int, nbytes: int) -> None:
    raise MemoryExhausted(f"{segment.key}: 1000 bytes free, {nbytes} are needed")


class NewerTriton:
    """Simulates a newer Triton, which cannot run here.

    According to its source of mid 2026, unregistering a region that is in use succeeds, and the
    region stays listed until its last request has ended.
    """

    def __init__(self) -> None:
        self.listed: dict[str, str] = {}
        self.in_use: set[str] = set()
        self.rejects = self.down = self.is_old = False

    async def regions(self) -> dict[str, str]:
        if self.down:
            raise Unreachable("down")
        return dict(self.listed)

    async def register(self, name: str, key: str, nbytes: int) -> None:
        if self.rejects:
            raise EngineFailure("shared memory is disabled")
        if name in self.listed:
            raise EngineFailure(f"shared memory region '{name}' already in manager")
        self.listed[name] = key

    async def unregister(self, name: str) -> None:
        if self.down:
            raise Unreachable("down")
        if self.rejects:
            raise EngineFailure("shared memory is disabled")
        if name in self.in_use and self.is_old:
            raise EngineFailure(f"Cannot unregister '{name}', it is currently in use.")
        if name not in self.in_use:
            self.listed.pop(name, None)


@pytest.fixture
def newer() -> NewerTriton:
    return NewerTriton()


@pytest.fixture
async def regions(newer: NewerTriton) -> AsyncIterator[ShmRegions]:
    regions = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # the methods in use
    yield regions
    await regions.aclose()


async def test_retired_region_is_in_use_while_triton_lists_it(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    await regions.register(segment)
    newer.in_use.add(segment.key.lstrip("/"))
    ended = regions.retire(segment)
    for _ in range(3):
        await regions.reap()
    assert not ended.done()
    assert regions.retired_bytes == segment.nbytes

    newer.in_use.clear()
    await regions.reap()
    assert ended.done()
    assert regions.retired_bytes == 0


async def test_retired_region_stays_in_use_while_triton_is_unreachable(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    await regions.register(segment)
    ended = regions.retire(segment)
    newer.down = True
    with pytest.raises(Unreachable):
        await regions.reap()
    assert not ended.done()

    # After a restart it lists no regions.
    newer.down = False
    newer.listed.clear()
    await regions.reap()
    assert ended.done()


async def test_registering_a_listed_region_again_succeeds(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)

    assert await regions.register(segment)
    assert await regions.register(segment)


async def test_registration_is_retried_if_triton_rejects_it_after_a_restart(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    assert await regions.register(segment)
    newer.listed.clear()
    newer.rejects = True
    await regions.restore()
    assert not regions.accepted
    assert "disabled" in regions.rejection

    newer.rejects = False
    await regions.restore()
    assert regions.accepted
    assert list(newer.listed.values()) == [segment.key]


async def test_probe_retires_no_memory_if_triton_has_shared_memory_disabled(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    newer.rejects = True
    await regions.probe()
    assert not regions.accepted
    assert regions.retired_bytes == 0

    # Later checks have nothing to do, and do not fail.
    await regions.restore()
    await regions.reap()


async def test_one_rejected_segment_does_not_disable_shared_memory(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    await regions.probe()
    newer.rejects = True
    assert not await regions.register(regions._shared.create(1))

    assert regions.accepted
    # Otherwise closing waits for it.
    newer.rejects = False


async def test_segment_that_is_retired_while_others_are_registered_is_not_registered(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    first, second = regions._shared.create(1), regions._shared.create(1)
    regions.add(first)
    regions.add(second)
    register = newer.register
    ended: list[asyncio.Future[None]] = []
    reaping: list[asyncio.Task[None]] = []

    async def register_and_retire(name: str, key: str, nbytes: int) -> None:
        await register(name, key, nbytes)
        if key == first.key:
            ended.append(regions.retire(second))
            reaping.append(asyncio.create_task(regions.reap()))
            await asyncio.sleep(0)

    newer.register = register_and_retire  # type: ignore[method-assign]  # runs in between
    await regions.restore()
    await asyncio.gather(*reaping)

    assert regions.accepted
    assert ended[0].done()
    assert list(newer.listed.values()) == [first.key]


@pytest.mark.parametrize("is_old", [True, False])
async def test_orphaned_regions_are_unregistered_once_they_are_not_in_use(
    is_old: bool, newer: NewerTriton, regions: ShmRegions
) -> None:
    newer.is_old = is_old
    orphan, foreign = "samserve-0000000000000000", "foreign"
    newer.listed = {orphan: f"/{orphan}", foreign: f"/{foreign}"}
    newer.in_use.add(orphan)
    await regions.unregister_orphans()
    assert orphan in newer.listed

    newer.in_use.clear()
    await regions.reap()
    assert list(newer.listed) == [foreign]


async def test_closing_waits_for_regions_in_use(newer: NewerTriton) -> None:
    newer.is_old = True
    regions = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # the methods in use
    segment = regions._shared.create(1)
    await regions.register(segment)
    newer.in_use.add(segment.key.lstrip("/"))
    asyncio.get_running_loop().call_later(0.15, newer.in_use.clear)
    await regions.aclose()

    assert newer.listed == {}
    assert not regions._shared.exists(segment.key)


async def test_closing_does_not_wait_for_an_unreachable_triton(newer: NewerTriton) -> None:
    regions = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # the methods in use
    segment = regions._shared.create(1)
    await regions.register(segment)
    ended = regions.retire(segment)
    newer.down = True
    await regions.aclose()

    assert ended.cancelled()
    assert not regions._shared.exists(segment.key)

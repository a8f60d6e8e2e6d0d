"""Which transport is in force: users and groups, a Triton elsewhere, no room, a newer Triton."""

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
from tests.engines.triton.opening import clicks, encoded, opened, picture, reserved
from tests.triton import nobody, servers

SHARED_GROUP, OTHER_GROUP = 54321, 54322


@pytest.fixture(scope="module")
def triton_of_nobody() -> Iterator[TritonServer]:
    with nobody.serving([SHARED_GROUP]) as server:
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


@nobody.needed
async def test_a_triton_of_another_user_shares_memory_through_a_group(
    triton_of_nobody: TritonServer,
) -> None:
    async with regions_of(triton_of_nobody, SHARED_GROUP) as regions:
        await regions.probe()
        assert regions.accepted


@nobody.needed
@pytest.mark.parametrize("group", [None, OTHER_GROUP])
async def test_a_triton_of_another_user_and_group_refuses(
    group: int | None, triton_of_nobody: TritonServer
) -> None:
    async with regions_of(triton_of_nobody, group) as regions:
        await regions.probe()
        assert not regions.accepted
        assert "Unable to open shared memory region" in regions.refusal


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton does not see our segments, as if it ran on another machine."""
    monkeypatch.setattr(engine_module, "SharedMemory", partial(SharedMemory, tmp_path))


@pytest.mark.usefixtures("elsewhere")
async def test_a_triton_elsewhere_is_sent_messages_and_the_log_says_so() -> None:
    server = servers.drawing()
    with capture_logs() as logs:
        async with opened(server.grpc_address, shared_memory="auto") as (engine, store):
            assert engine.transport is Transport.MESSAGE
            slot = await encoded(engine, store)
            output = await engine.decode("fake", slot.as_embedding(), clicks(), RequestContext())
            assert output.low_res_logits.any()

    (found,) = [entry for entry in logs if entry["event"] == "model server found"]
    assert found["transport"] == "message"
    assert "Unable to open shared memory region" in found["reason"]


@pytest.mark.usefixtures("elsewhere")
async def test_shared_memory_that_is_required_is_not_done_without() -> None:
    server = servers.drawing()
    with pytest.raises(EngineUnavailable, match="shares no memory"):
        async with opened(server.grpc_address, shared_memory="required"):
            pass


async def test_an_arena_that_does_not_fit_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = servers.drawing()
    monkeypatch.setattr(SharedSegment, "commit", no_room)
    with capture_logs() as logs:
        async with opened(server.grpc_address, shared_memory="auto") as (engine, store):
            slot = await reserved(engine, store, "x")
            assert engine.transport is Transport.MESSAGE
            await engine.encode("fake", picture(), slot, RequestContext())
            assert slot.tensors["image_embedding"].any()
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert "1000 bytes free" in warnings[0]["reason"]

    async with opened(server.grpc_address, shared_memory="required") as (engine, store):
        with pytest.raises(MemoryExhausted):
            await reserved(engine, store, "x")


def no_room(segment: SharedSegment, _offset: int, nbytes: int) -> None:
    raise MemoryExhausted(f"{segment.key}: 1000 bytes free, {nbytes} are needed")


class NewerTriton:
    """Stands in for a newer Triton, which cannot run here.

    By its source of mid 2026, unregistering a region that is in use succeeds, and the region stays
    listed until its last request has ended.
    """

    def __init__(self) -> None:
        self.listed: dict[str, str] = {}
        self.in_use: set[str] = set()
        self.refuses = self.down = self.is_old = False

    async def regions(self) -> dict[str, str]:
        if self.down:
            raise Unreachable("down")
        return dict(self.listed)

    async def register(self, name: str, key: str, nbytes: int) -> None:
        if self.refuses:
            raise EngineFailure("shared memory is disabled")
        if name in self.listed:
            raise EngineFailure(f"shared memory region '{name}' already in manager")
        self.listed[name] = key

    async def unregister(self, name: str) -> None:
        if self.down:
            raise Unreachable("down")
        if self.refuses:
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
    found = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # what is used of it
    yield found
    await found.aclose()


async def test_a_region_that_is_listed_still_is_in_use_still(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    await regions.add(segment)
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


async def test_an_unreachable_triton_keeps_what_it_may_write_into(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    await regions.add(segment)
    ended = regions.retire(segment)
    newer.down = True
    with pytest.raises(Unreachable):
        await regions.reap()
    assert not ended.done()

    # It has restarted: it knows nothing any more.
    newer.down = False
    newer.listed.clear()
    await regions.reap()
    assert ended.done()


async def test_a_region_that_is_known_already_is_as_good_as_new(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)

    assert await regions.add(segment)
    assert await regions.add(segment)


async def test_a_triton_that_refuses_after_a_restart_is_asked_again(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    segment = regions._shared.create(1)
    assert await regions.add(segment)
    newer.listed.clear()
    newer.refuses = True
    await regions.restore()
    assert not regions.accepted
    assert "disabled" in regions.refusal

    newer.refuses = False
    await regions.restore()
    assert regions.accepted
    assert list(newer.listed.values()) == [segment.key]


async def test_a_triton_that_has_sharing_switched_off_leaves_nothing_behind(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    newer.refuses = True
    await regions.probe()
    assert not regions.accepted
    assert regions.retired_bytes == 0

    # A look at it finds nothing to do, and nothing wrong.
    await regions.restore()
    await regions.reap()


async def test_one_refused_segment_does_not_end_sharing(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    await regions.probe()
    newer.refuses = True
    assert not await regions.add(regions._shared.create(1))

    assert regions.accepted
    # Otherwise the end waits for it.
    newer.refuses = False


async def test_a_segment_that_is_retired_while_others_are_registered_stays_away(
    newer: NewerTriton, regions: ShmRegions
) -> None:
    first, second = regions._shared.create(1), regions._shared.create(1)
    regions.want(first)
    regions.want(second)
    register = newer.register
    ended: list[asyncio.Future[None]] = []
    reaping: list[asyncio.Task[None]] = []

    async def register_and_lose(name: str, key: str, nbytes: int) -> None:
        await register(name, key, nbytes)
        if key == first.key:
            ended.append(regions.retire(second))
            reaping.append(asyncio.create_task(regions.reap()))
            await asyncio.sleep(0)

    newer.register = register_and_lose  # type: ignore[method-assign]  # what happens meanwhile
    await regions.restore()
    await asyncio.gather(*reaping)

    assert regions.accepted
    assert ended[0].done()
    assert list(newer.listed.values()) == [first.key]


@pytest.mark.parametrize("is_old", [True, False])
async def test_regions_of_dead_gateways_are_forgotten_when_they_are_used_no_more(
    is_old: bool, newer: NewerTriton, regions: ShmRegions
) -> None:
    newer.is_old = is_old
    dead, others = "samserve-0000000000000000", "somebody-elses"
    newer.listed = {dead: f"/{dead}", others: f"/{others}"}
    newer.in_use.add(dead)
    await regions.forget_orphans()
    assert dead in newer.listed

    newer.in_use.clear()
    await regions.reap()
    assert list(newer.listed) == [others]


async def test_what_is_in_use_at_the_end_is_waited_for(newer: NewerTriton) -> None:
    newer.is_old = True
    regions = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # what is used of it
    segment = regions._shared.create(1)
    await regions.add(segment)
    newer.in_use.add(segment.key.lstrip("/"))
    asyncio.get_running_loop().call_later(0.15, newer.in_use.clear)
    await regions.aclose()

    assert newer.listed == {}
    assert not regions._shared.exists(segment.key)


async def test_the_end_does_not_wait_for_a_triton_that_is_away(newer: NewerTriton) -> None:
    regions = ShmRegions(newer, SharedMemory())  # type: ignore[arg-type]  # what is used of it
    segment = regions._shared.create(1)
    await regions.add(segment)
    lost = regions.retire(segment)
    newer.down = True
    await regions.aclose()

    assert lost.cancelled()
    assert not regions._shared.exists(segment.key)

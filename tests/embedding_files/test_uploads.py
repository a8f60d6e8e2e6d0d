"""Unfinished uploads: their bytes are bounded and counted, and every end frees them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.fake import FakeEngine
from samserve.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MethodDisabled,
    Overloaded,
    QuotaExceeded,
)
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.security.principal import Allowance, Principal
from samserve.segmentation import embedding_files
from samserve.segmentation.embedding_files import EmbeddingFiles

from tests.embedding_files.files import SMALL, build, facts_of, split, tensors_of
from tests.segmentation.use_cases import UseCases
from tests.support.waiting import until

FILE = build()
PAYLOAD = SMALL.embedding_bytes
HEADER = len(FILE) - PAYLOAD


@dataclass
class Sender:
    """The chunks of a file, which wait for ``go`` after the first *sent* ones."""

    chunks: list[bytes]
    sent: int = 10**9
    go: asyncio.Event = field(default_factory=asyncio.Event)
    taken: int = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if self.taken == self.sent:
                await self.go.wait()
            self.taken += 1
            yield chunk


def half() -> Sender:
    """Return a sender that stops in the middle of the payload."""
    return Sender([FILE[: HEADER + 100], FILE[HEADER + 100 :]], sent=1)


@dataclass
class Setup:
    """The use case on a small model, with its limit of uploads."""

    engine: FakeEngine = field(default_factory=lambda: FakeEngine(model=SMALL))
    cache: LocalCache = field(default_factory=lambda: LocalCache(1 << 20, ttl_s=600))
    limit: int = 1 << 20
    timeout_s: float = 600.0
    shared: bool = False

    def __post_init__(self) -> None:
        self.cases = UseCases(self.engine, cache=self.cache)
        self.uploads = TenantLimit(self.limit, "u", "upload_bytes", shared=lambda: self.shared)
        self.files = EmbeddingFiles(
            self.cases.embeddings, self.uploads, self.timeout_s, put_enabled=True
        )

    def put(self, sender: Sender, context: RequestContext | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.files.put(sender(), context or RequestContext()))

    @property
    def used(self) -> tuple[int, int]:
        """Bytes of unfinished uploads, and of the cache."""
        return self.uploads.in_use, self.cache.stats().bytes


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Setup]]:
    setups: list[Setup] = []

    def create(**options: Any) -> Setup:
        setups.append(Setup(**options))
        return setups[-1]

    yield create
    for setup in setups:
        await setup.cases.aclose()


async def outcome(call: Awaitable[Any]) -> Any:
    """Return the result of a call, or its error."""
    (result,) = await asyncio.gather(call, return_exceptions=True)
    return result


async def waiting(*senders: Sender) -> None:
    await until(lambda: all(sender.taken == sender.sent for sender in senders))
    await asyncio.sleep(0)


async def test_slot_is_reserved_only_when_the_whole_file_has_been_checked(
    opened: Callable[..., Setup],
) -> None:
    setup, last = opened(), Sender([FILE[:-1], FILE[-1:]], sent=1)
    call = setup.put(last)
    await waiting(last)

    before = setup.used
    last.go.set()
    stored = await call

    assert before == (PAYLOAD, 0)
    assert setup.used == (0, setup.cache.stats().bytes)
    assert setup.cache.stats().entries == 1
    assert stored.embedding_id.startswith("put_")


async def test_bytes_of_unfinished_uploads_are_bounded(opened: Callable[..., Setup]) -> None:
    setup, senders = opened(limit=4 * PAYLOAD), [half() for _ in range(50)]
    calls = [setup.put(sender) for sender in senders]
    await until(lambda: sum(call.done() for call in calls) == 46)

    rejected = [call.exception() for call in calls if call.done()]
    admitted = setup.used
    for sender in senders:
        sender.go.set()
    results = [await outcome(call) for call in calls]

    assert admitted == (4 * PAYLOAD, 0)
    assert {type(error) for error in rejected} == {Overloaded}
    assert {error.metadata["resource"] for error in rejected if error is not None} == {  # type: ignore[attr-defined]
        "upload_bytes"
    }
    assert sum(not isinstance(result, Exception) for result in results) == 4
    assert setup.used[0] == 0


async def test_no_tenant_uses_all_bytes_of_uploads(opened: Callable[..., Setup]) -> None:
    setup = opened(limit=8 * PAYLOAD, shared=True)
    one, two = (RequestContext(principal=Principal(tenant=name)) for name in ("one", "two"))
    senders = [half() for _ in range(8)]
    calls = [setup.put(sender, one) for sender in senders]
    await until(lambda: sum(call.done() for call in calls) == 2)

    other = half()
    other_call = setup.put(other, two)
    await waiting(other)

    assert setup.uploads.in_use == 7 * PAYLOAD
    for sender in (*senders, other):
        sender.go.set()
    results = [await outcome(call) for call in (*calls, other_call)]
    assert [type(result) for result in results].count(Overloaded) == 2
    assert setup.uploads.in_use == 0


async def test_header_is_checked_before_its_payload_counts(opened: Callable[..., Setup]) -> None:
    setup = opened()
    wrong = build(facts={**facts_of(), "encoder_digest": "other"})
    sender = Sender([wrong[:-PAYLOAD], b"never sent"], sent=1)

    assert isinstance(await outcome(setup.put(sender)), InvalidRequest)
    assert sender.taken == 1
    assert setup.used == (0, 0)


@pytest.mark.parametrize("at", [0, 1, 3], ids=["header", "first byte", "payload"])
async def test_cancelled_upload_frees_everything(opened: Callable[..., Setup], at: int) -> None:
    setup = opened()
    chunks = [FILE[:20], FILE[20 : HEADER + 1], FILE[HEADER + 1 : -9], FILE[-9:]]
    sender = Sender(chunks, sent=at)
    call = setup.put(sender)
    await waiting(sender)

    counted = setup.uploads.in_use
    call.cancel()

    assert isinstance(await outcome(call), asyncio.CancelledError)
    assert counted == (PAYLOAD if at > 1 else 0)
    assert setup.used == (0, 0)


async def test_slot_is_freed_once_no_thread_writes_to_it(
    opened: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, begun, go = opened(), threading.Event(), threading.Event()

    def copy(*_: Any) -> None:
        begun.set()
        go.wait()

    monkeypatch.setattr(embedding_files, "_copy", copy)
    monkeypatch.setattr(
        embedding_files, "copying", lambda _, function, *args: asyncio.to_thread(function, *args)
    )
    call = setup.put(Sender([FILE]))
    await until(begun.is_set)
    call.cancel()
    assert isinstance(await outcome(call), asyncio.CancelledError)

    quarantined = setup.cache.stats()
    go.set()
    await until(lambda: setup.cache.stats().bytes == 0)

    assert quarantined.quarantined_bytes == quarantined.bytes > 0
    assert setup.used == (0, 0)


async def test_endless_uploads_end(opened: Callable[..., Setup]) -> None:
    setup = opened()
    endless = {
        "zeros": itertools.repeat(bytes(1000)),
        "spaces in the header": itertools.chain(
            [(1 << 20).to_bytes(8, "little")], itertools.repeat(b" " * 1000)
        ),
        "a long header": itertools.chain(
            [(64 << 10).to_bytes(8, "little") + b"{"], itertools.repeat(b" " * 1000)
        ),
        "a payload": itertools.chain([FILE], itertools.repeat(bytes(1000))),
        "empty chunks": itertools.repeat(b""),
        "single bytes": itertools.chain([FILE[:HEADER]], itertools.repeat(b"\0")),
    }

    for name, chunks in endless.items():
        taken = 0

        async def send(chunks: Any = chunks) -> AsyncIterator[bytes]:
            nonlocal taken
            for chunk in chunks:
                taken += 1
                yield chunk

        assert isinstance(await outcome(setup.files.put(send(), RequestContext())), InvalidRequest)
        assert taken < 100, name
        assert setup.used == (0, 0), name


async def test_many_small_chunks_are_accepted_only_if_they_are_large_on_average(
    opened: Callable[..., Setup],
) -> None:
    large = replace(SMALL, embedding=(replace(SMALL.embedding[0], shape=(3, 400, 400)),))
    setup = opened(engine=FakeEngine(model=large))
    data = build(tensors_of(large), facts_of(large))

    small = await outcome(setup.put(Sender(split(data, 2000))))
    stored = await outcome(setup.put(Sender(split(data, 4096))))

    assert isinstance(small, InvalidRequest)
    assert small.metadata == {"limit": "4096"}
    assert stored.embedding_id.startswith("put_")


async def test_file_that_takes_too_long_ends(opened: Callable[..., Setup]) -> None:
    setup, sender = opened(timeout_s=0.05), half()

    error = await outcome(setup.put(sender))

    assert isinstance(error, DeadlineExceeded)
    assert error.metadata == {"stage": "receive"}
    assert setup.used == (0, 0)


async def test_weights_that_are_replaced_during_an_upload_reject_it(
    opened: Callable[..., Setup],
) -> None:
    setup, sender = opened(), half()
    call = setup.put(sender)
    await waiting(sender)

    setup.engine._model = replace(SMALL, encoder_digest="other")
    sender.go.set()

    assert isinstance(await outcome(call), InvalidRequest)
    assert setup.used == (0, 0)


async def test_quotas_of_the_tenant_apply_before_the_payload_counts(
    opened: Callable[..., Setup],
) -> None:
    full = opened(cache=LocalCache(1 << 20, ttl_s=600, quota=lambda tenant: 1))
    large = opened()
    allowance = Allowance("acme", max_image_pixels=48 * 64 - 1)
    senders = [Sender([FILE[:HEADER], FILE[HEADER:]], sent=1) for _ in range(2)]

    errors = [
        await outcome(full.put(senders[0])),
        await outcome(large.put(senders[1], RequestContext(allowance=allowance))),
    ]

    assert [type(error) for error in errors] == [QuotaExceeded, QuotaExceeded]
    assert [error.metadata["quota"] for error in errors] == [
        "max_cached_bytes",
        "max_image_megapixels",
    ]
    assert full.used == large.used == (0, 0)


async def test_method_that_is_not_enabled_raises(opened: Callable[..., Setup]) -> None:
    files = opened().files

    files.check_enabled("PutEmbedding")
    with pytest.raises(MethodDisabled, match="GetEmbedding"):
        files.check_enabled("GetEmbedding")

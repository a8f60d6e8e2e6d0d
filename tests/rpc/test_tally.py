"""What the metrics say of how calls ended is what the clients have seen."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
import pytest
from samserve.app import Running
from samserve.calls import access_log
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import serving, settings_with
from tests.rpc.errors import finish
from tests.rpc.moody import Moody, click, embed, grid, named
from tests.samples import total
from tests.support.waiting import until

ROUNDS = 6
AT_ONCE = 24
Tally = Counter[tuple[str, str]]


def requests(embedding_id: str, index: int) -> dict[str, Any]:
    """One request of each kind, by the beginning of its id."""
    unknown = f"{index:064x}"
    return {
        "embeds": pb.EmbedRequest(image=pictures.image(40, 64, seed=index)),
        "predicts": click(embedding_id),
        "breaks": click(embedding_id),
        "sends-rubbish": pb.EmbedRequest(image=pb.Image(encoded=b"rubbish")),
        "clicks-on-nothing": click(unknown),
        "names-no-model": embed(model="nobody"),
        "endless-cancels": embed(seed=1000 + index),
        "finds-all": grid(embedding_id),
        "away-midway": grid(embedding_id),
        "leaves-midway": grid(embedding_id),
        "deletes": pb.DeleteEmbeddingRequest(embedding_id=unknown),
        "endless-late": embed(seed=2000 + index),
    }


async def seen(
    stub: SegmentationServiceStub, kind: str, request: Any, index: int
) -> tuple[str, str]:
    """Make a call; returns its method, and how it has ended for the client."""
    method = type(request).__name__.removesuffix("Request")
    # gRPC rounds what it sends of timeouts over a second up to hundredths.
    timeout = 1.001 + 0.001 * index if index % 2 else 0.9 + 0.0137 * index
    options = {"timeout": timeout} if kind == "endless-late" else {}
    call = getattr(stub, method)(request, **named(f"{kind}-{index}"), **options)
    if kind == "endless-cancels":
        # Some before anything has been done, some when the encoder runs.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(call.initial_metadata()), 0.01 * (index % 4))
        call.cancel()
    if kind == "leaves-midway":
        async for _ in call:
            call.cancel()
            break
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await (call.code() if kind == "leaves-midway" else finish(call))
    return method, (await call.code()).name


def told(service: Running) -> Tally:
    """What the metrics say, without what has not happened."""
    return Counter(
        {
            (sample.labels["grpc_method"], sample.labels["grpc_code"]): int(sample.value)
            for family in service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total" and sample.value
        }
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_codes_are_counted_as_clients_see_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a call is on its way for long.  Those that are cancelled have a minute.
    monkeypatch.setattr(access_log, "_ON_THE_WAY_S", 1.0)
    settings = settings_with(admission={"automask": 100}, log={"level": "error"})
    engine = Moody()
    async with serving(settings, engine=engine) as (service, stub):
        first = (await stub.Embed(embed())).embedding.id
        calls = [
            (kind, request, index)
            for index in range(ROUNDS)
            for kind, request in requests(first, index).items()
        ]
        late = [call for call in calls if call[0] == "endless-late"]
        others = [call for call in calls if call not in late]
        random.Random(seed).shuffle(others)
        places = asyncio.Semaphore(AT_ONCE)

        async def taken(*call: Any) -> tuple[str, str]:
            async with places:
                return await seen(stub, *call)

        # First, so that they arrive: what never left the client is no call to the server.
        first_calls = [asyncio.create_task(seen(stub, *call)) for call in late]
        await until(lambda: len(engine.endless) == ROUNDS)
        tally: Tally = Counter(
            await asyncio.gather(*first_calls, *(taken(*call) for call in others))
        )
        tally["Embed", "OK"] += 1

        await until(lambda: told(service).total() == tally.total())
        assert told(service) == tally
        assert tally["Embed", "CANCELLED"] == tally["AutoMask", "CANCELLED"] == ROUNDS
        assert tally["Embed", "DEADLINE_EXCEEDED"] == tally["AutoMask", "UNAVAILABLE"] == ROUNDS
        assert tally["Predict", "INTERNAL"] == ROUNDS
        started = total(service.metrics.registry, "grpc_server_started_total")
        assert started == tally.total()

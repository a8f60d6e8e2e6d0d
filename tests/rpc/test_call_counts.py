"""The codes that are counted in metrics are those that the clients received."""

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

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.metric_values import total
from tests.rpc.errors import finish
from tests.rpc.scripted_engine import (
    ScriptedEngine,
    automask_request,
    embed_request,
    predict_request,
    with_id,
)
from tests.support.waiting import until

ROUNDS = 6
CONCURRENCY = 24
Counts = Counter[tuple[str, str]]


def requests(embedding_id: str, index: int) -> dict[str, Any]:
    """Return one request of each kind, by the prefix of its id."""
    unknown = f"{index:064x}"
    return {
        "embeds": pb.EmbedRequest(image=sample_images.image(40, 64, seed=index)),
        "predicts": predict_request(embedding_id),
        "breaks": predict_request(embedding_id),
        "invalid-image": pb.EmbedRequest(image=pb.Image(encoded=b"garbage")),
        "unknown-embedding": predict_request(unknown),
        "unknown-model": embed_request(model="unknown"),
        "blocked-cancels": embed_request(seed=1000 + index),
        "finds-all": automask_request(embedding_id),
        "unavailable-midway": automask_request(embedding_id),
        "leaves-midway": automask_request(embedding_id),
        "deletes": pb.DeleteEmbeddingRequest(embedding_id=unknown),
        "blocked-late": embed_request(seed=2000 + index),
    }


async def outcome_of(
    stub: SegmentationServiceStub, kind: str, request: Any, index: int
) -> tuple[str, str]:
    """Make a call; return its method and its code at the client."""
    method = type(request).__name__.removesuffix("Request")
    # gRPC rounds timeouts over a second up to hundredths.
    timeout = 1.001 + 0.001 * index if index % 2 else 0.9 + 0.0137 * index
    options = {"timeout": timeout} if kind == "blocked-late" else {}
    call = getattr(stub, method)(request, **with_id(f"{kind}-{index}"), **options)
    if kind == "blocked-cancels":
        # Some before any work has begun, some while the encoder runs.
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


def counted(service: Running) -> Counts:
    """Return the counts of the metrics, without zeros."""
    return Counter(
        {
            (sample.labels["grpc_method"], sample.labels["grpc_code"]): int(sample.value)
            for family in service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total" and sample.value
        }
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_counted_codes_are_those_of_the_clients(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a call may take long to arrive.  Cancelled calls have a minute left.
    monkeypatch.setattr(access_log, "_NETWORK_DELAY_S", 1.0)
    settings = settings_with(admission={"max_concurrent_automask": 100}, log={"level": "error"})
    engine = ScriptedEngine()
    async with serving(settings, engine=engine) as (service, stub):
        first = (await stub.Embed(embed_request())).embedding.id
        calls = [
            (kind, request, index)
            for index in range(ROUNDS)
            for kind, request in requests(first, index).items()
        ]
        late = [call for call in calls if call[0] == "blocked-late"]
        others = [call for call in calls if call not in late]
        random.Random(seed).shuffle(others)
        slots = asyncio.Semaphore(CONCURRENCY)

        async def limited(*call: Any) -> tuple[str, str]:
            async with slots:
                return await outcome_of(stub, *call)

        # First, so that they arrive: the server does not count calls that never left the client.
        first_calls = [asyncio.create_task(outcome_of(stub, *call)) for call in late]
        await until(lambda: len(engine.blocked) == ROUNDS)
        expected: Counts = Counter(
            await asyncio.gather(*first_calls, *(limited(*call) for call in others))
        )
        expected["Embed", "OK"] += 1

        await until(lambda: counted(service).total() == expected.total())
        assert counted(service) == expected
        assert expected["Embed", "CANCELLED"] == expected["AutoMask", "CANCELLED"] == ROUNDS
        assert (
            expected["Embed", "DEADLINE_EXCEEDED"] == expected["AutoMask", "UNAVAILABLE"] == ROUNDS
        )
        assert expected["Predict", "INTERNAL"] == ROUNDS
        started = total(service.metrics.registry, "grpc_server_started_total")
        assert started == expected.total()

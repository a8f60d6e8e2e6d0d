"""Engines and gateways on a given Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from samserve.app import Running, running
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.memory.slot import Slot
from samserve.settings import Settings, TritonSettings, load
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import FREE_PORTS, UNLIMITED
from tests.engines.drawing import HELD_X
from tests.metric_values import total
from tests.support.waiting import until

SIDE = 1024
STARTUP_S = 60.0
"""Shorter than the timeout of a test, for a Triton that has crashed."""

Service = tuple[Running, SegmentationServiceStub]


@asynccontextmanager
async def opened(
    url: str, *, capacity_bytes: int = 64 << 20, default_model: str = "", **settings: Any
) -> AsyncIterator[tuple[TritonEngine, LocalCache]]:
    """Open an engine and a cache in the memory that it allocates."""
    engine = TritonEngine(
        TritonSettings(
            **{"url": url, "shared_memory": "required", "startup_timeout_s": STARTUP_S, **settings}
        ),
        Metrics(CollectorRegistry()),
        default_model,
    )
    others = background_tasks()
    await engine.open()
    cache = LocalCache(capacity_bytes, ttl_s=600, allocate=engine.allocate)
    try:
        yield engine, cache
    finally:
        await cache.aclose()
        await engine.aclose()
        assert background_tasks() <= others, "a closed engine still has background tasks"


def background_tasks() -> set[asyncio.Task[Any]]:
    """Return the running tasks of `system.background`."""
    codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
    return {task for task, code in codes.items() if code and "background.py" in code.co_filename}


def random_image(seed: int = 0, height: int = SIDE, width: int = SIDE) -> EncoderInput:
    """Return a random image in the model frame."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:height, :width] = sample_images.noise(height, width, seed)
    return EncoderInput(pixels, Size(height, width))


def point_prompts(
    count: int = 1, seed: int = 0, points: int = 1, masks: int = 0, *, held: bool = False
) -> PromptBatch:
    """Return random prompts of *points* points each, with the padding point of the reference.

    A run of *held* prompts does not end until the test releases it.
    """
    numbers = np.random.default_rng(seed)
    coords = np.zeros((count, points + 1, 2), dtype=np.float32)
    coords[:, :points] = numbers.random((count, points, 2)) * SIDE
    if held:
        coords[0, 0, 0] = HELD_X
    labels = np.full((count, points + 1), -1, dtype=np.float32)
    labels[:, :points] = numbers.integers(0, 2, (count, points))
    labels[:, 0] = 1
    mask = numbers.normal(scale=4, size=(masks, 256, 256)).astype(np.float32)
    return PromptBatch(coords, labels, mask)


async def reserved(engine: Engine, cache: LocalCache, name: str = "x") -> Slot:
    """Reserve a slot for an embedding of the default model."""
    info = next(iter(engine.models.values()))
    facts = EmbeddingFacts.of(Size(SIDE, SIDE), info)
    return await cache.reserve(EmbeddingKey("t", name), facts, info.embedding)


async def encoded(
    engine: Engine, cache: LocalCache, name: str = "x", image: EncoderInput | None = None
) -> Slot:
    """Encode an image, a random one if none is given, with the default model."""
    slot = await reserved(engine, cache, name)
    await engine.encode(slot.facts.model_name, image or random_image(), slot, RequestContext())
    return slot


def matches(slot: Slot, image: EncoderInput) -> bool:
    """Return whether a slot holds the embedding of an image by the drawing encoder: cell means."""
    cells = image.pixels.reshape(64, 16, 64, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    written = slot.tensors["image_embedding"].astype(np.float32)
    return np.allclose(written[:3], cells, atol=0.1) and not written[3:].any()


def settings_for(
    url: str, *, capacity_bytes: int = 64 << 20, default_model: str = "", **triton: Any
) -> Settings:
    """Return settings of a gateway on free ports."""
    return load(
        {
            "server": FREE_PORTS,
            "engine": {"kind": "triton", "default_model": default_model},
            "triton": {"url": url, "startup_timeout_s": STARTUP_S, **triton},
            "cache": {"local": {"capacity_bytes": capacity_bytes}},
        }
    )


@asynccontextmanager
async def gateway(url: str, **settings: Any) -> AsyncIterator[Service]:
    """Run a gateway with `settings_for` these, and connect to it."""
    async with (
        running(settings_for(url, **settings)) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, SegmentationServiceStub(channel)


def is_healthy(service: Running) -> bool:
    """Return whether Triton was healthy at the gateway's last check."""
    return bool(service.engine._monitor.healthy)  # type: ignore[attr-defined]  # it is a TritonEngine


def runs_in_flight(metrics: Metrics, network: str) -> int:
    """Return the number of requests to Triton that have no response yet."""
    return int(total(metrics.registry, "samserve_engine_running", network=network))


async def wait_for_checks(engine: TritonEngine, times: int = 3) -> None:
    """Wait for a few more checks of Triton and of the credentials files."""
    rotation = engine._monitor._rotation
    refresh, checks = rotation.refresh, 0

    async def counted() -> None:
        nonlocal checks
        await refresh()
        checks += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "refresh", counted)
        await until(lambda: checks >= times)

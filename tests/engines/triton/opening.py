"""Engines and gateways on a Triton that a test chooses."""

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
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.memory.slot import Slot
from samserve.settings import Settings, TritonSettings, load
from samserve.stores.local.store import MemoryStore
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import FREE_PORTS, UNLIMITED
from tests.engines.drawing import HELD_CLICK
from tests.samples import total
from tests.support.waiting import until

SIDE = 1024
STARTUP_S = 60.0
"""A Triton that has died is not waited for as long as a test may take."""

Service = tuple[Running, SegmentationServiceStub]


@asynccontextmanager
async def opened(
    url: str, *, capacity_bytes: int = 64 << 20, default_model: str = "", **settings: Any
) -> AsyncIterator[tuple[TritonEngine, MemoryStore]]:
    """Open an engine and a store in the memory that it allocates."""
    engine = TritonEngine(
        TritonSettings(
            **{"url": url, "shared_memory": "required", "startup_s": STARTUP_S, **settings}
        ),
        Metrics(CollectorRegistry()),
        default_model,
    )
    others = background_tasks()
    await engine.open()
    store = MemoryStore(capacity_bytes, ttl_s=600, allocate=engine.allocate)
    try:
        yield engine, store
    finally:
        await store.aclose()
        await engine.aclose()
        assert background_tasks() <= others, "a closed engine still watches"


def background_tasks() -> set[asyncio.Task[Any]]:
    """The tasks that `system.background` runs now."""
    codes = {task: getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()}
    return {task for task, code in codes.items() if code and "background.py" in code.co_filename}


def picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> EncoderInput:
    """A random picture in the model frame."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:height, :width] = pictures.noise(height, width, seed)
    return EncoderInput(pixels, Size(height, width))


def clicks(
    count: int = 1, seed: int = 0, points: int = 1, masks: int = 0, *, held: bool = False
) -> PromptBatch:
    """Random clicks of *points* points each, with the padding point of the reference.

    A run of those that are *held* takes until the test lets it go on.
    """
    numbers = np.random.default_rng(seed)
    coords = np.zeros((count, points + 1, 2), dtype=np.float32)
    coords[:, :points] = numbers.random((count, points, 2)) * SIDE
    if held:
        coords[0, 0, 0] = HELD_CLICK
    labels = np.full((count, points + 1), -1, dtype=np.float32)
    labels[:, :points] = numbers.integers(0, 2, (count, points))
    labels[:, 0] = 1
    mask = numbers.normal(scale=4, size=(masks, 256, 256)).astype(np.float32)
    return PromptBatch(coords, labels, mask)


async def reserved(engine: Engine, store: MemoryStore, name: str = "x") -> Slot:
    """Take a slot for an embedding of the default model."""
    info = next(iter(engine.models.values()))
    facts = EmbeddingFacts.of(Size(SIDE, SIDE), info)
    return await store.reserve(EmbeddingKey("t", name), facts, info.embedding)


async def encoded(
    engine: Engine, store: MemoryStore, name: str = "x", image: EncoderInput | None = None
) -> Slot:
    """Encode an image, a random one if none is given, by the default model."""
    slot = await reserved(engine, store, name)
    await engine.encode(slot.facts.model_name, image or picture(), slot, RequestContext())
    return slot


def holds(slot: Slot, image: EncoderInput) -> bool:
    """Whether a slot holds what the encoder that draws makes of an image: means of its cells."""
    cells = image.pixels.reshape(64, 16, 64, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    written = slot.tensors["image_embedding"].astype(np.float32)
    return np.allclose(written[:3], cells, atol=0.1) and not written[3:].any()


def settings_for(
    url: str, *, capacity_bytes: int = 64 << 20, default_model: str = "", **triton: Any
) -> Settings:
    """Settings of a gateway on free ports."""
    return load(
        {
            "server": FREE_PORTS,
            "engine": {"kind": "triton", "default_model": default_model},
            "triton": {"url": url, "startup_s": STARTUP_S, **triton},
            "store": {"capacity_bytes": capacity_bytes},
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
    """Whether the gateway has seen, when it last looked, that Triton is well."""
    return bool(service.engine._monitor.healthy)  # type: ignore[attr-defined]  # it is a TritonEngine


def under_way(metrics: Metrics, network: str) -> int:
    """Count the runs that Triton has been given and has not answered."""
    return int(total(metrics.registry, "samserve_engine_running", network=network))


async def looked_again(engine: TritonEngine, times: int = 3) -> None:
    """Wait until Triton, and the files of credentials, have been looked at a few times more."""
    rotation = engine._monitor._rotation
    look, looks = rotation.look, 0

    async def counted() -> None:
        nonlocal looks
        await look()
        looks += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "look", counted)
        await until(lambda: looks >= times)

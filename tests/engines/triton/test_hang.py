"""Triton hangs, calls time out, their memory is needed again, Triton resumes: no wrong mask."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from samserve.app import Running, default_repository
from samserve.core import rle
from samserve.types import CocoRle, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.triton.server import TritonServer
from tests import photos, sample_images
from tests.engines.triton.services import gateway
from tests.support.waiting import until

EMBEDDING = 2 << 20
# Fewer slots than images: slots are reused all the time.
SLOTS, IMAGES = 5, 9
CALLERS, ROUNDS, ENOUGH = 6, 4, 4
# Most calls time out early; some wait until they succeed, even on a busy machine.
CALL_TIMEOUTS_S = [0.05, 0.2, 0.5, 2.0, 120.0]
TIMEOUT_S = 120.0
POINTS = [(60.0, 70.0), (150.0, 110.0), (220.0, 60.0)]


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[TritonServer]:
    with TritonServer(default_repository(), log=tmp_path / "log") as server:
        yield server


@cache
def images() -> list[pb.Image]:
    """Return crops of photographs, all of one size."""
    found = []
    for data in photos.files():
        pixels = photos.pixels(data)
        crops = (pixels[y : y + 200, x : x + 300] for y, x in ((0, 0), (50, 100), (100, 50)))
        found += [pb.Image(encoded=sample_images.encode(crop)) for crop in crops]
    return found


def request(image: pb.Image, point: int) -> pb.PredictRequest:
    return pb.PredictRequest(
        image=image,
        prompts=[sample_images.point_prompt(*POINTS[point])],
        multimask=pb.MULTIMASK_ALL,
    )


def masks(response: pb.PredictResponse) -> np.ndarray:
    """Return the three masks, bool ``[3, h, w]``."""
    found = []
    for mask in response.results[0].masks:
        size = mask.coco_rle.size
        found.append(rle.decode(CocoRle(Size(size.height, size.width), mask.coco_rle.counts)))
    return np.stack(found)


Expected = dict[tuple[int, int], np.ndarray]


async def caller(
    numbers: random.Random,
    stub: SegmentationServiceStub,
    expected: Expected,
    outcomes: Counter[str],
    over: asyncio.Event,
) -> None:
    """Call Predict on random images with random timeouts, and check every response."""
    pool = images()
    while not over.is_set():
        image, point = numbers.randrange(IMAGES), numbers.randrange(len(POINTS))
        timeout = numbers.choice(CALL_TIMEOUTS_S)
        try:
            response = await stub.Predict(request(pool[image], point), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            outcomes[error.code().name] += 1
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                await asyncio.sleep(0.05)
            continue
        # Batches round differently, which changes a few pixels; another image's mask differs more.
        unequal = (masks(response) != expected[image, point]).mean()
        outcomes["correct" if unequal < 0.001 else "WRONG"] += 1


async def hang_and_resume(triton: TritonServer, outcomes: Counter[str]) -> None:
    """Let calls succeed, then let them time out, alternately."""
    for _ in range(ROUNDS):
        await more(outcomes, "correct")
        triton.pause()
        await more(outcomes, "DEADLINE_EXCEEDED")
        # This version sometimes crashes on a cancellation (docs/triton.md); the gateway has to
        # survive that as well.
        await asyncio.to_thread(triton.ensure_running)
    await more(outcomes, "correct")


async def more(outcomes: Counter[str], outcome: str) -> None:
    """Wait until an outcome has occurred a few more times."""
    enough = outcomes[outcome] + ENOUGH
    await until(partial(has, outcomes, outcome, enough), TIMEOUT_S)


def has(outcomes: Counter[str], outcome: str, count: int) -> bool:
    return outcomes[outcome] >= count


@pytest.mark.slow
async def test_all_masks_are_correct_when_triton_hangs_under_load(triton: TritonServer) -> None:
    async with gateway(
        triton.grpc_address, shared_memory="required", capacity_bytes=SLOTS * EMBEDDING
    ) as (service, stub):
        expected: Expected = {}
        for index, image in enumerate(images()):
            for point in range(len(POINTS)):
                expected[index, point] = masks(await stub.Predict(request(image, point)))
        assert_distinguishable(expected)

        outcomes: Counter[str] = Counter()
        quarantined: set[int] = set()
        over = asyncio.Event()
        watching = asyncio.create_task(watch(service, quarantined))
        callers = [
            asyncio.create_task(caller(random.Random(number), stub, expected, outcomes, over))
            for number in range(CALLERS)
        ]
        try:
            await hang_and_resume(triton, outcomes)
        finally:
            over.set()
            await asyncio.gather(*callers)
            watching.cancel()
        print(dict(outcomes), f"{max(quarantined) / EMBEDDING:.0f} slots in quarantine at most")

        assert outcomes["WRONG"] == 0
        failures = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
        assert set(outcomes) <= {"correct", *failures}
        assert max(quarantined) > 0
        await until(lambda: service.cache.stats().quarantined_bytes == 0)
        response = await stub.Predict(request(images()[0], 0))
        assert (masks(response) != expected[0, 0]).mean() < 0.001


def assert_distinguishable(expected: Expected) -> None:
    """Check that the masks of different images and points differ."""
    keys = list(expected)
    for index, key in enumerate(keys):
        for other in keys[:index]:
            assert (expected[key] != expected[other]).mean() > 0.005, (key, other)


async def watch(service: Running, quarantined: set[int]) -> None:
    while True:
        quarantined.add(service.cache.stats().quarantined_bytes)
        await asyncio.sleep(0.01)

"""Clients that click and segment while versions are replaced, and check whose masks they get."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.engines.promotion.models import SIGNS, iou_of
from tests.support.waiting import until

VERSIONS = {round(iou_of(version), 3): version for version in SIGNS}


@dataclass
class InService:
    """The versions that are in service, as the one who replaces them knows it."""

    now: frozenset[int]
    seen: list[frozenset[int]] = field(default_factory=list)

    def set(self, *versions: int) -> None:
        self.now = frozenset(versions)
        self.seen.append(self.now)


@dataclass(frozen=True)
class _Client:
    stub: SegmentationServiceStub
    image: pb.Image
    embedding: str
    reference: np.ndarray


@dataclass
class Clients:
    """What the clients have got: counts by kind of call and version, and what was wrong."""

    in_service: InService
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ready: int = 0
    pause_s: float = 0.1
    points_per_side: int = 4

    @asynccontextmanager
    async def running(
        self, stubs: list[SegmentationServiceStub], clicking: int, segmenting: int
    ) -> AsyncIterator[None]:
        """Run clients while the block runs, in turns on the servers."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number in range(clicking + segmenting):
                stub = stubs[number % len(stubs)]
                work = self._click if number < clicking else self._segment
                tasks.create_task(self._repeat(work, stub, number, over))
            try:
                await until(lambda: self.ready == clicking + segmenting or self.wrong)
                yield
            finally:
                over.set()

    async def progress(self, calls: int = 10) -> None:
        """Wait until so many more calls have ended."""
        before = self.counts.total()
        await until(lambda: self.counts.total() >= before + calls or self.wrong)

    async def _repeat(self, work, stub, number, over) -> None:  # type: ignore[no-untyped-def]
        image = sample_images.image(seed=number % 4)
        embedding = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        # The masks of the first version, with which those of the others are compared.
        _, reference = await self._logits(stub, pb.PredictRequest(embedding_id=embedding))
        client = _Client(stub, image, embedding, reference)
        self.ready += 1
        while not over.is_set():
            start, first = self.in_service.now, len(self.in_service.seen)
            try:
                kind, version = await work(client)
            except Exception as error:
                self.wrong.append(f"{work.__name__}: {error}")
                return
            allowed = start.union(*self.in_service.seen[first:])
            if version not in allowed:
                self.wrong.append(f"{kind} of version {version}, while {allowed} were in service")
            self.counts[kind, version] += 1
            # AutoMask gets a turn only while no click waits.
            await asyncio.sleep(self.pause_s)

    async def _click(self, client: _Client) -> tuple[str, int]:
        request = pb.PredictRequest(embedding_id=client.embedding)
        if self.counts.total() % 7 == 0:
            request = pb.PredictRequest(image=client.image)
        version, logits = await self._logits(client.stub, request)
        if np.vdot(logits, client.reference) * SIGNS[version] <= 0:
            self.wrong.append(f"the logits are not those of version {version}")
        return "click", version

    async def _logits(
        self, stub: SegmentationServiceStub, request: pb.PredictRequest
    ) -> tuple[int, np.ndarray]:
        request.prompts.append(sample_images.point_prompt())
        request.include_low_res_logits = True
        masks = (await stub.Predict(request)).results[0].masks
        version = version_of(mask.predicted_iou for mask in masks)
        return version, np.frombuffer(masks[0].low_res_logits, dtype=np.float32)

    async def _segment(self, client: _Client) -> tuple[str, int]:
        options = pb.AutoMaskOptions(
            points_per_side=self.points_per_side,
            points_per_batch=1,
            pred_iou_thresh=0,
            stability_score_thresh=0,
        )
        request = pb.AutoMaskRequest(embedding_id=client.embedding, options=options)
        scores = [
            record.mask.predicted_iou
            async for response in client.stub.AutoMask(request)
            for record in response.masks.records
        ]
        return "automask", version_of(scores)


def version_of(scores: Iterable[float]) -> int:
    """Return the version of all masks of a call, which must be one."""
    (version,) = {VERSIONS.get(round(score, 3), -1) for score in scores}
    return version

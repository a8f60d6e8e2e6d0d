"""Running AutoMask: crops, batches of points, filters; decoding overlaps with filtering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from samserve import images
from samserve.context import RequestContext
from samserve.core import geometry, tokens
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.errors import InvalidRequest
from samserve.segmentation.automask import filters
from samserve.segmentation.automask.crops import CropPlan, plan_crops
from samserve.segmentation.automask.events import Event, FilterCounts, Progress, Records, Summary
from samserve.segmentation.automask.filters import Candidate, CropView
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import ByImage, Embedder, Leased, Source
from samserve.segmentation.prompts import Frames, check_box_inside
from samserve.types import (
    Array,
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    ImageDigest,
    ModelInfo,
    Size,
    UInt8Array,
)

# Candidates whose logits (256 KiB each) are kept for the end of a crop; more become run lengths.
_MOST_DEFERRED = 128

P = ParamSpec("P")
T = TypeVar("T")
Filter = Callable[[list[Candidate], AutoMaskOptions, FilterCounts], list[Candidate]]


@dataclass(slots=True, eq=False)
class _Search:
    """One call: what it works on, and what it has found so far."""

    leased: Leased
    options: AutoMaskOptions
    context: RequestContext
    crops: list[CropPlan]
    counts: FilterCounts = field(default_factory=FilterCounts)
    points_done: int = 0
    crops_done: int = 0

    def progress(self) -> Progress:
        """Say how far the call is."""
        total = sum(len(crop.points) for crop in self.crops)
        return Progress(self.points_done, total, self.crops_done, len(self.crops))


class AutoMasker:
    """Finds every object; same records as the reference generator, in less work."""

    def __init__(self, embedder: Embedder, prompts_per_run: int) -> None:
        self._embedder = embedder
        self._prompts_per_run = prompts_per_run

    async def search(
        self, source: Source, model: str, options: AutoMaskOptions, context: RequestContext
    ) -> AsyncGenerator[Event]:
        """Yield progress, then all records at once, then a summary.

        Raises `InvalidRequest` for a region of interest outside the image, before any model runs.
        Source: segment_anything/automatic_mask_generator.py.
        """
        check = partial(_check_region, options)
        async with self._embedder.lease(source, model, context, check=check) as leased:
            image = leased.embedding.facts.image_size
            search = _Search(leased, options, context, plan_crops(image, options))
            pixels = await self._pixels(source, search)
            found: list[Candidate] = []
            yield search.progress()
            # Closed at once when the caller leaves, and not when it is garbage collected.
            async with aclosing(self._search_crops(pixels, search, found)) as steps:
                async for progress in steps:
                    yield progress
            found = await self._finish(found, search)
            with context.clock.stage("encode_masks"):
                records = [await self._run(search, filters.record, each) for each in found]
            yield Records(tuple(records))
            yield Summary(leased, search.counts.listed(), len(records))

    async def _finish(self, found: list[Candidate], search: _Search) -> list[Candidate]:
        if len(search.crops) > 1:
            found = await self._apply(filters.suppress_across_crops, found, search)
        if search.options.min_mask_region_area > 0:
            found = await self._apply(filters.remove_small_regions, found, search)
        if search.options.max_masks > 0:
            found = await self._apply(filters.keep_best, found, search)
        return found

    async def _pixels(self, source: Source, search: _Search) -> UInt8Array | None:
        """Decode the image if crops are to be cut from it."""
        if len(search.crops) == 1 or not isinstance(source, ByImage):
            return None
        if isinstance(source.image, ImageDigest):
            raise InvalidRequest(
                "options.crop_n_layers", "must be 0 without the image: crops are encoded from it"
            )
        with search.context.clock.stage("decode_image"):
            return await self._run(search, images.decode, source.image, self._embedder.limits)

    @asynccontextmanager
    async def _crop_embedding(
        self, crop: CropPlan, pixels: UInt8Array | None, search: _Search
    ) -> AsyncIterator[Embedding]:
        """Give the stored embedding for the whole image, and encode every other crop."""
        leased = search.leased
        if crop is search.crops[0] or pixels is None:
            yield leased.embedding
            return
        store = self._embedder.store
        x_min, y_min, x_max, y_max = crop.box
        facts = EmbeddingFacts.of(crop.size, leased.model)
        # Never published: nobody else can ask for a crop.
        key = EmbeddingKey(search.context.tenant, f"{leased.embedding_id}:{crop.box}")
        slot = await store.reserve(key, facts, leased.model.embedding, transient=True)
        try:
            await self._embedder.encoder.encode_pixels(
                pixels[y_min:y_max, x_min:x_max], leased.model, slot, search.context
            )
            yield slot.as_embedding()
        finally:
            await store.discard(slot)

    async def _search_crops(
        self, pixels: UInt8Array | None, search: _Search, found: list[Candidate]
    ) -> AsyncGenerator[Progress]:
        for crop in search.crops:
            async with aclosing(self._search_crop(crop, pixels, search, found)) as steps:
                async for progress in steps:
                    yield progress

    async def _search_crop(
        self,
        crop: CropPlan,
        pixels: UInt8Array | None,
        search: _Search,
        found: list[Candidate],
    ) -> AsyncGenerator[Progress]:
        """Add what the crop holds to *found*."""
        kept: list[Candidate] = []
        async with (
            self._crop_embedding(crop, pixels, search) as embedding,
            aclosing(self._search_points(crop, embedding, search, kept)) as steps,
        ):
            async for progress in steps:
                yield progress
        found += await self._apply(filters.suppress_in_crop, kept, search)
        search.crops_done += 1
        yield search.progress()

    async def _search_points(
        self, crop: CropPlan, embedding: Embedding, search: _Search, found: list[Candidate]
    ) -> AsyncGenerator[Progress]:
        """Decode the crop's points batch by batch; filter one batch while the next is decoded."""
        frames = Frames.of(crop.size, search.leased.model)
        view = CropView(crop, search.crops[0].size, frames.upsampling())
        most = min(search.options.points_per_batch, self._prompts_per_run)
        filtering: asyncio.Future[list[Candidate]] | None = None
        try:
            for start in range(0, len(crop.points), most):
                points = crop.points[start : start + most]
                output = await self._decode(points, embedding, frames, search)
                if filtering is not None:
                    await self._collect(filtering, found, search)
                filtering = asyncio.ensure_future(self._judge(output, points, view, search))
                search.points_done += len(points)
                yield search.progress()
            if filtering is not None:
                await self._collect(filtering, found, search)
        finally:
            if filtering is not None:
                filtering.cancel()

    async def _decode(
        self, points: Array, embedding: Embedding, frames: Frames, search: _Search
    ) -> DecoderOutput:
        search.context.check_deadline()
        moved = geometry.points_to_model_frame(points, frames.image, frames.resized)
        coords, labels = tokens.grid_prompts(moved)
        no_masks = np.zeros((0, frames.mask_side, frames.mask_side), dtype=np.float32)
        with search.context.clock.stage("decode"):
            return await self._embedder.engine.decode(
                search.leased.model.name,
                embedding,
                PromptBatch(coords, labels, no_masks),
                search.context,
            )

    async def _judge(
        self, output: DecoderOutput, points: Array, view: CropView, search: _Search
    ) -> list[Candidate]:
        # It runs beside the next decoding; what is left to wait for is on the call's own clock.
        context = replace(search.context, clock=search.context.clock.branch())
        with context.clock.stage("postprocess"):
            return await self._embedder.workers.run(
                context, filters.judge, output, points, view, search.options, search.counts
            )

    async def _collect(
        self,
        filtering: asyncio.Future[list[Candidate]],
        found: list[Candidate],
        search: _Search,
    ) -> None:
        with search.context.clock.stage("postprocess"):
            found += await filtering
            found[:] = await self._run(search, filters.compact, found, _MOST_DEFERRED)

    async def _run(
        self, search: _Search, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._embedder.workers.run(search.context, function, *args, **kwargs)

    async def _apply(
        self, step: Filter, found: list[Candidate], search: _Search
    ) -> list[Candidate]:
        with search.context.clock.stage("filter"):
            return await self._run(search, step, found, search.options, search.counts)


def _check_region(options: AutoMaskOptions, image: Size, _model: ModelInfo) -> None:
    if options.region_of_interest is not None:
        check_box_inside("options.region_of_interest", options.region_of_interest, image)

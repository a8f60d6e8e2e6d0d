"""Running AutoMask: crops, batches of points, filters; decoding overlaps with filtering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, Engine, PromptBatch
from samserve.errors import InvalidRequest
from samserve.models import families
from samserve.models.families.base import ImageTransform
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask import filters
from samserve.segmentation.automask.crops import CropPlan, plan_crops
from samserve.segmentation.automask.events import (
    Event,
    FilterCount,
    FilterCounts,
    Progress,
    Records,
    Summary,
)
from samserve.segmentation.automask.filters import Candidate, CropView, FilteredBatch
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.prompts import check_box_inside
from samserve.segmentation.sources import ImageSource, LeaseOptions, Source
from samserve.types import (
    Array,
    AutoMaskRecord,
    Box,
    Embedding,
    ImageDigest,
    MaskFormat,
    ModelInfo,
    Size,
    UInt8Array,
)

# Candidates whose logits (256 KiB each) are kept for the end of a crop; more become run lengths.
_MAX_DEFERRED = 128
# Masks that are held in the format of the answer at a time.
_RECORDS_PER_EVENT = 64

Filter = Callable[[list[Candidate], AutoMaskOptions], list[Candidate]]


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """One call: what it works on; ``pixels`` are those of the image if crops are cut from it."""

    lease: EmbeddingLease
    options: AutoMaskOptions
    context: RequestContext
    crops: list[CropPlan]
    pixels: UInt8Array | None
    counts: FilterCounts = field(default_factory=FilterCounts)


class AutoMasker:
    """Finds every object; same records as the reference generator, in less work."""

    def __init__(
        self,
        embeddings: EmbeddingService,
        engine: Engine,
        workers: Workers,
        prompts_per_run: int,
    ) -> None:
        self._embeddings = embeddings
        self._engine = engine
        self._workers = workers
        self._prompts_per_run = prompts_per_run

    async def search(
        self,
        source: Source,
        model: str,
        given: Mapping[str, Any],
        context: RequestContext,
        mask_format: MaskFormat = MaskFormat.COCO_RLE,
    ) -> AsyncGenerator[Event]:
        """Yield progress, then the records in batches, then a summary.

        *given* are fields of `AutoMaskOptions` by name; the model's family completes them.
        Raises `InvalidRequest` for a region of interest outside the image, before any model runs.
        Source: segment_anything/automatic_mask_generator.py.
        """
        leasing = LeaseOptions(
            check=partial(_check_region, given.get("region_of_interest")),
            keep_pixels=given.get("crop_n_layers", 0) > 0,
        )
        async with self._embeddings.lease(source, model, context, leasing) as lease:
            options = AutoMaskOptions.of(families.of(lease.model), given)
            crops = plan_crops(lease.embedding.facts.image_size, options)
            pixels = await self._pixels(source, lease, context) if len(crops) > 1 else None
            search = _Search(lease, options, context, crops, pixels)
            # Closed at once when the caller leaves, and not when it is garbage collected.
            async with aclosing(self._generate(search, mask_format)) as events:
                async for event in events:
                    yield event

    async def _pixels(
        self, source: Source, lease: EmbeddingLease, context: RequestContext
    ) -> UInt8Array:
        """Return the decoded image; who has encoded it for this call has decoded it already."""
        if not isinstance(source, ImageSource) or isinstance(source.image, ImageDigest):
            raise InvalidRequest(
                "options.crop_n_layers", "must be 0 without the image: crops are encoded from it"
            )
        if lease.pixels is not None:
            return lease.pixels
        return await self._embeddings.decode(source.image, context)

    async def _generate(self, search: _Search, mask_format: MaskFormat) -> AsyncGenerator[Event]:
        """Search crop by crop, and in each batch by batch."""
        total = sum(len(crop.points) for crop in search.crops)
        progress = Progress(0, total, 0, len(search.crops))
        yield progress
        found: list[Candidate] = []
        for crop in search.crops:
            in_crop: list[Candidate] = []
            async with (
                self._embedding(crop, search) as embedding,
                aclosing(self._batches(crop, embedding, search)) as batches,
            ):
                async for batch in batches:
                    in_crop = await self._add(in_crop, batch, search)
                    progress = replace(progress, points_done=progress.points_done + batch.points)
                    yield progress
            found += await self._apply("box_nms", filters.suppress_in_crop, in_crop, search)
            progress = replace(progress, crops_done=progress.crops_done + 1)
            yield progress
        found = await self._finish(found, search)
        for start in range(0, len(found), _RECORDS_PER_EVENT):
            some = found[start : start + _RECORDS_PER_EVENT]
            yield Records(await self._records(some, mask_format, search.context))
        yield Summary(search.lease, search.counts.listed(), len(found))

    def _embedding(self, crop: CropPlan, search: _Search) -> AbstractAsyncContextManager[Embedding]:
        """Hold the stored embedding of the whole image, and encode every other crop."""
        lease = search.lease
        if crop is search.crops[0] or search.pixels is None:
            return nullcontext(lease.embedding)
        x_min, y_min, x_max, y_max = crop.box
        pixels = search.pixels[y_min:y_max, x_min:x_max]
        name = f"{lease.embedding_id}:{crop.box}"
        return self._embeddings.unpublished(pixels, name, lease.model, search.context)

    async def _batches(
        self, crop: CropPlan, embedding: Embedding, search: _Search
    ) -> AsyncGenerator[FilteredBatch]:
        """Decode the crop's points batch by batch; filter one batch while the next is decoded."""
        family = families.of(search.lease.model)
        transform = family.transform(crop.size, search.lease.model)
        view = CropView(family, crop, search.crops[0].size, family.upsampling(transform))
        most = min(search.options.points_per_batch, self._prompts_per_run)
        filtering: asyncio.Task[FilteredBatch] | None = None
        try:
            for start in range(0, len(crop.points), most):
                points = crop.points[start : start + most]
                output = await self._decode(points, embedding, transform, search)
                filtered = await self._wait(filtering, search.context)
                filtering = asyncio.create_task(self._filter(output, points, view, search))
                if filtered is not None:
                    yield filtered
            last = await self._wait(filtering, search.context)
            if last is not None:
                yield last
        finally:
            if filtering is not None:
                filtering.cancel()

    async def _decode(
        self, points: Array, embedding: Embedding, transform: ImageTransform, search: _Search
    ) -> DecoderOutput:
        context, model = search.context, search.lease.model
        context.check_deadline()
        coords, labels = families.of(model).grid_prompts(transform.points_to_model(points))
        no_masks = np.zeros((0, transform.mask_side, transform.mask_side), dtype=np.float32)
        batch = PromptBatch(coords, labels, no_masks)
        with context.clock.stage("decode"):
            return await self._engine.decode(model.name, embedding, batch, context)

    async def _filter(
        self, output: DecoderOutput, points: Array, view: CropView, search: _Search
    ) -> FilteredBatch:
        # It runs beside the next decoding; what is left to wait for is on the call's own clock.
        context = replace(search.context, clock=search.context.clock.branch())
        with context.clock.stage("postprocess"):
            return await self._workers.run(
                context, filters.filter_batch, output, points, view, search.options
            )

    async def _wait(
        self, filtering: asyncio.Task[FilteredBatch] | None, context: RequestContext
    ) -> FilteredBatch | None:
        if filtering is None:
            return None
        with context.clock.stage("postprocess"):
            return await filtering

    async def _add(
        self, candidates: list[Candidate], batch: FilteredBatch, search: _Search
    ) -> list[Candidate]:
        """Return the candidates of a crop with those of one more batch."""
        search.counts.add(batch.counts)
        together = candidates + batch.candidates
        with search.context.clock.stage("postprocess"):
            return await self._workers.run(
                search.context, filters.spill_to_rle, together, _MAX_DEFERRED
            )

    async def _finish(self, found: list[Candidate], search: _Search) -> list[Candidate]:
        """Apply the filters over all crops."""
        if len(search.crops) > 1:
            found = await self._apply("crop_nms", filters.suppress_across_crops, found, search)
        if search.options.min_mask_region_area > 0:
            found = await self._apply("small_regions", filters.remove_small_regions, found, search)
        if search.options.max_masks > 0:
            found = await self._apply("max_masks", filters.keep_best, found, search)
        return found

    async def _apply(
        self, name: str, step: Filter, candidates: list[Candidate], search: _Search
    ) -> list[Candidate]:
        with search.context.clock.stage("filter"):
            kept = await self._workers.run(search.context, step, candidates, search.options)
        search.counts.add((FilterCount(name, len(candidates), len(kept)),))
        return kept

    async def _records(
        self, candidates: list[Candidate], mask_format: MaskFormat, context: RequestContext
    ) -> tuple[AutoMaskRecord, ...]:
        with context.clock.stage("encode_masks"):
            records = [
                await self._workers.run(context, filters.record, each, mask_format)
                for each in candidates
            ]
        return tuple(records)


def _check_region(region: Box | None, image: Size, _model: ModelInfo) -> None:
    if region is not None:
        check_box_inside("options.region_of_interest", region, image)

"""Running AutoMask: crops, batches of points, filters; decoding overlaps with filtering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, Engine, PromptBatch
from samserve.errors import InvalidRequest
from samserve.models import families
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask import filters
from samserve.segmentation.automask.crops import CropPlan, plan_crops
from samserve.segmentation.automask.events import (
    Event,
    FilterCount,
    Progress,
    Records,
    Summary,
    sum_counts,
)
from samserve.segmentation.automask.filters import Candidate, CropView, FilteredBatch
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.prompts import check_box_inside, grid_batch
from samserve.segmentation.sources import ImageSource, LeaseOptions, Source
from samserve.types import (
    Array,
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

P = ParamSpec("P")
T = TypeVar("T")
Filter = Callable[[list[Candidate], AutoMaskOptions], list[Candidate]]


@dataclass(frozen=True, slots=True, eq=False)
class AutoMasker:
    """Finds every object; same records as the reference generator, in less work."""

    embeddings: EmbeddingService
    engine: Engine
    workers: Workers
    prompts_per_run: int

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
        Raises `InvalidRequest`, before any model runs, for a region of interest outside the image
        and for a model without AutoMask.
        Source: segment_anything/automatic_mask_generator.py.
        """
        leasing = LeaseOptions(
            check=partial(_check, given.get("region_of_interest")),
            keep_pixels=given.get("crop_n_layers", 0) > 0,
        )
        async with self.embeddings.lease(source, model, context, leasing) as lease:
            options = AutoMaskOptions.of(families.of(lease.model), given)
            crops = plan_crops(lease.embedding.facts.image_size, options)
            pixels = await self._pixels(source, lease, context) if len(crops) > 1 else None
            search = _Search(self, lease, options, context, crops, pixels)
            # Closed at once when the caller leaves, and not when it is garbage collected.
            async with aclosing(search.events(mask_format)) as events:
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
        return await self.embeddings.decode(source.image, context)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """One call: what it works on; ``pixels`` are those of the image if crops are cut from it."""

    parts: AutoMasker
    lease: EmbeddingLease
    options: AutoMaskOptions
    context: RequestContext
    crops: list[CropPlan]
    pixels: UInt8Array | None
    counts: list[FilterCount] = field(default_factory=list)

    async def events(self, mask_format: MaskFormat) -> AsyncGenerator[Event]:
        """Search crop by crop, and in each batch by batch."""
        total = sum(len(crop.points) for crop in self.crops)
        progress = Progress(0, total, 0, len(self.crops))
        yield progress
        found: list[Candidate] = []
        for crop in self.crops:
            in_crop: list[Candidate] = []
            async with (
                self._embedding(crop) as embedding,
                aclosing(self._batches(crop, embedding)) as batches,
            ):
                async for batch in batches:
                    in_crop = await self._add(in_crop, batch)
                    progress = replace(progress, points_done=progress.points_done + batch.points)
                    yield progress
            found += await self._apply("box_nms", filters.suppress_in_crop, in_crop)
            progress = replace(progress, crops_done=progress.crops_done + 1)
            yield progress
        found = await self._finish(found)
        for start in range(0, len(found), _RECORDS_PER_EVENT):
            yield await self._records(found[start : start + _RECORDS_PER_EVENT], mask_format)
        yield Summary(self.lease, sum_counts(self.counts), len(found))

    def _embedding(self, crop: CropPlan) -> AbstractAsyncContextManager[Embedding]:
        """Hold the stored embedding of the whole image, and encode every other crop."""
        lease = self.lease
        if crop is self.crops[0] or self.pixels is None:
            return nullcontext(lease.embedding)
        x_min, y_min, x_max, y_max = crop.box
        pixels = self.pixels[y_min:y_max, x_min:x_max]
        name = f"{lease.embedding_id}:{crop.box}"
        return self.parts.embeddings.unpublished(pixels, name, lease.model, self.context)

    async def _batches(self, crop: CropPlan, embedding: Embedding) -> AsyncGenerator[FilteredBatch]:
        """Decode the crop's points batch by batch; filter one batch while the next is decoded."""
        family = families.of(self.lease.model)
        transform = family.transform(crop.size, self.lease.model)
        view = CropView(family, crop, self.crops[0].size, family.upsampling(transform))
        most = min(self.options.points_per_batch, self.parts.prompts_per_run)
        filtering: asyncio.Task[FilteredBatch] | None = None
        try:
            for start in range(0, len(crop.points), most):
                points = crop.points[start : start + most]
                output = await self._decode(grid_batch(points, family, transform), embedding)
                if filtering is not None:
                    yield await self._filtered(filtering)
                filtering = asyncio.create_task(self._filter(output, points, view))
            if filtering is not None:
                yield await self._filtered(filtering)
        finally:
            if filtering is not None:
                filtering.cancel()

    async def _decode(self, batch: PromptBatch, embedding: Embedding) -> DecoderOutput:
        context = self.context
        context.check_deadline()
        with context.clock.stage("decode"):
            model = self.lease.model.name
            return await self.parts.engine.decode(model, embedding, batch, context)

    async def _filter(self, output: DecoderOutput, points: Array, view: CropView) -> FilteredBatch:
        # It runs beside the next decoding; what is left to wait for is on the call's own clock.
        beside = replace(self, context=replace(self.context, clock=self.context.clock.branch()))
        return await beside._run(
            "postprocess", filters.filter_batch, output, points, view, self.options
        )

    async def _filtered(self, filtering: asyncio.Task[FilteredBatch]) -> FilteredBatch:
        with self.context.clock.stage("postprocess"):
            return await filtering

    async def _add(self, candidates: list[Candidate], batch: FilteredBatch) -> list[Candidate]:
        """Return the candidates of a crop with those of one more batch."""
        self.counts.extend(batch.counts)
        together = candidates + batch.candidates
        return await self._run("postprocess", filters.spill_to_rle, together, _MAX_DEFERRED)

    async def _finish(self, found: list[Candidate]) -> list[Candidate]:
        """Apply the filters over all crops."""
        if len(self.crops) > 1:
            found = await self._apply("crop_nms", filters.suppress_across_crops, found)
        if self.options.min_mask_region_area > 0:
            found = await self._apply("small_regions", filters.remove_small_regions, found)
        if self.options.max_masks > 0:
            found = await self._apply("max_masks", filters.keep_best, found)
        return found

    async def _apply(self, name: str, step: Filter, candidates: list[Candidate]) -> list[Candidate]:
        kept = await self._run("filter", step, candidates, self.options)
        self.counts.append(FilterCount(name, len(candidates), len(kept)))
        return kept

    async def _records(self, some: list[Candidate], mask_format: MaskFormat) -> Records:
        records = [
            await self._run("encode_masks", filters.record, candidate, mask_format)
            for candidate in some
        ]
        return Records(tuple(records))

    async def _run(
        self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in a worker thread, which is a stage of the call."""
        with self.context.clock.stage(stage):
            return await self.parts.workers.run(self.context, function, *args, **kwargs)


def _check(region: Box | None, image: Size, model: ModelInfo) -> None:
    if not families.of(model).capabilities.automask:
        raise InvalidRequest("model", f"{model.name!r} has no AutoMask")
    if region is not None:
        check_box_inside("options.region_of_interest", region, image)

"""The run of AutoMask: crops, batches of points, filters; decoding overlaps with filtering."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, Engine, PromptBatch
from samserve.errors import InvalidRequest
from samserve.models import families
from samserve.models.families.base import ImageTransform
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask import filters
from samserve.segmentation.automask.candidates import (
    Candidate,
    CropView,
    over_budget,
    to_record,
    with_run_lengths,
)
from samserve.segmentation.automask.checks import check_request
from samserve.segmentation.automask.crops import CropPlan, plan_crops
from samserve.segmentation.automask.events import (
    Event,
    FilterCount,
    Progress,
    Records,
    Summary,
    sum_counts,
)
from samserve.segmentation.automask.exclusion import Exclusion
from samserve.segmentation.automask.filters import (
    DecodedBatch,
    FilteredBatch,
    FilteredPiece,
    Passed,
    mask_prompts,
)
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.automask.run_size import RunSize
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.prompts import grid_batch
from samserve.segmentation.sources import ImageSource, LeaseOptions, Source
from samserve.types import (
    Embedding,
    ImageDigest,
    MaskFormat,
    PolygonOptions,
    UInt8Array,
)

_POLYGONS = PolygonOptions()

# Logits of a crop's candidates (at most 256 KiB each); beyond it, the largest become run lengths.
_MAX_LOGITS_BYTES = 32 << 20
# Masks that are in memory in the format of the response at the same time.
_RECORDS_PER_EVENT = 64

P = ParamSpec("P")
T = TypeVar("T")
Filter = Callable[[list[Candidate], AutoMaskOptions], list[Candidate]]


@dataclass(frozen=True, slots=True, eq=False)
class AutoMasker:
    """Segments every object: the records of the reference generator, with less work."""

    embeddings: EmbeddingService
    engine: Engine
    workers: Workers
    run_size: RunSize

    async def generate(
        self,
        source: Source,
        model: str,
        overrides: Mapping[str, Any],
        context: RequestContext,
        mask_format: MaskFormat = MaskFormat.COCO_RLE,
        polygons: PolygonOptions = _POLYGONS,
    ) -> AsyncGenerator[Event]:
        """Yield progress, then the records in batches, then a summary.

        *overrides* are fields of `AutoMaskOptions` by name; the model's family has the defaults.
        Raises `InvalidRequest`, before any inference, for what `check_request` rejects.
        Source: segment_anything/automatic_mask_generator.py.
        """
        leasing = LeaseOptions(
            check=partial(check_request, overrides),
            keep_pixels=overrides.get("crop_n_layers", 0) > 0,
        )
        async with self.embeddings.lease(source, model, context, leasing) as lease:
            options = AutoMaskOptions.of(families.of(lease.model), overrides)
            crops = plan_crops(lease.embedding.facts.image_size, options)
            pixels = await self._pixels(source, lease, context) if len(crops) > 1 else None
            exclusion = await self._exclusion(options, context)
            generation = _Generation(self, lease, options, context, crops, pixels, exclusion)
            # Closed as soon as the caller disconnects, not at garbage collection.
            async with aclosing(generation.events(mask_format, polygons)) as events:
                async for event in events:
                    yield event

    async def _pixels(
        self, source: Source, lease: EmbeddingLease, context: RequestContext
    ) -> UInt8Array:
        """Return the decoded image; an encode of this call has decoded it already."""
        if not isinstance(source, ImageSource) or isinstance(source.image, ImageDigest):
            raise InvalidRequest(
                "options.crop_n_layers", "must be 0 without the image: crops are encoded from it"
            )
        if lease.pixels is not None:
            return lease.pixels
        return await self.embeddings.decode(source.image, context)

    async def _exclusion(
        self, options: AutoMaskOptions, context: RequestContext
    ) -> Exclusion | None:
        if not options.exclude:
            return None
        with context.clock.stage("prepare"):
            return await self.workers.run(context, Exclusion.of, options)


@dataclass(frozen=True, slots=True, eq=False)
class _Generation:
    """State of one call; ``pixels`` are those of the image if crops are cut from it."""

    masker: AutoMasker
    lease: EmbeddingLease
    options: AutoMaskOptions
    context: RequestContext
    crops: list[CropPlan]
    pixels: UInt8Array | None
    exclusion: Exclusion | None
    counts: list[FilterCount] = field(default_factory=list)

    async def events(
        self, mask_format: MaskFormat, polygons: PolygonOptions
    ) -> AsyncGenerator[Event]:
        """Yield the events, crop by crop and batch by batch."""
        total = sum(len(crop.points) for crop in self.crops)
        progress = Progress(0, total, 0, len(self.crops))
        yield progress
        candidates: list[Candidate] = []
        for crop in self.crops:
            crop_candidates: list[Candidate] = []
            async with (
                self._embedding(crop) as embedding,
                aclosing(self._batches(crop, embedding)) as batches,
            ):
                async for batch in batches:
                    crop_candidates = await self._add_batch(crop_candidates, batch)
                    progress = replace(progress, points_done=progress.points_done + batch.points)
                    yield progress
            candidates += await self._apply("box_nms", filters.suppress_in_crop, crop_candidates)
            progress = replace(progress, crops_done=progress.crops_done + 1)
            yield progress
        candidates = await self._finish(candidates)
        for start in range(0, len(candidates), _RECORDS_PER_EVENT):
            part = candidates[start : start + _RECORDS_PER_EVENT]
            yield await self._records(part, mask_format, polygons)
        yield Summary(self.lease, sum_counts(self.counts), len(candidates))

    def _embedding(self, crop: CropPlan) -> AbstractAsyncContextManager[Embedding]:
        """Return the leased embedding of the whole image, or encode another crop."""
        lease = self.lease
        if crop is self.crops[0] or self.pixels is None:
            return nullcontext(lease.embedding)
        x_min, y_min, x_max, y_max = crop.box
        pixels = self.pixels[y_min:y_max, x_min:x_max]
        name = f"{lease.embedding_id}:{crop.box}"
        return self.masker.embeddings.encode_transient(pixels, name, lease.model, self.context)

    async def _batches(self, crop: CropPlan, embedding: Embedding) -> AsyncGenerator[FilteredBatch]:
        """Decode and filter the crop's points batch by batch."""
        model = self.lease.model
        family = families.of(model)
        transform = family.transform(crop.size, model)
        view = CropView(family, model, crop, self.crops[0].size, family.upsampling(transform))
        decoded = self._decoded(view, transform, embedding)
        async with aclosing(decoded), aclosing(self._filtered(decoded, view)) as batches:
            async for batch in batches:
                yield batch

    async def _filtered(
        self, batches: AsyncIterator[DecodedBatch], view: CropView
    ) -> AsyncGenerator[FilteredBatch]:
        """Filter each batch while the next one is decoded."""
        filtering: asyncio.Task[FilteredBatch] | None = None
        try:
            async for batch in batches:
                if filtering is not None:
                    yield await self._await_filtered(filtering)
                filtering = asyncio.create_task(self._filter(batch, view))
            if filtering is not None:
                yield await self._await_filtered(filtering)
        finally:
            if filtering is not None:
                filtering.cancel()

    async def _decoded(
        self, view: CropView, transform: ImageTransform, embedding: Embedding
    ) -> AsyncGenerator[DecodedBatch]:
        """Decode the crop's points in batches; with ``use_m2m``, decode the candidates again."""
        family, every_point = view.family, view.plan.points
        selection = self.options.selection(family)
        # With ``use_m2m``, the predicted IoU of a candidate is that of its refined mask.
        threshold = None if self.options.use_m2m else self.options.iou_threshold(family, selection)
        start = 0
        while start < len(every_point):
            points = every_point[start : start + self._batch_size]
            prompts = replace(grid_batch(points, family, transform), iou_threshold=threshold)
            output = await self._decode(prompts, embedding)
            start += len(points)
            batch = DecodedBatch(prompts, output, points, selection, evaluated=len(points))
            if not self.options.use_m2m:
                yield batch
                continue
            async with aclosing(self._refined(batch, view, embedding)) as refined:
                async for each in refined:
                    yield each

    async def _refined(
        self, batch: DecodedBatch, view: CropView, embedding: Embedding
    ) -> AsyncGenerator[DecodedBatch]:
        """Decode each candidate again, with its point and its own logits as the mask prompt.

        Source: ``refine_with_m2m`` of sam2/automatic_mask_generator.py.
        """
        selection = self.options.refined_selection(view.family)
        choices = await self._run("postprocess", batch.choices, view)
        threshold = self.options.iou_threshold(view.family, selection)
        start = 0
        # Part by part: mask prompts are as large as logits.
        while start < len(choices):
            part = choices[start : start + self._batch_size]
            start += len(part)
            again = await self._run("postprocess", mask_prompts, batch, part, view)
            again = replace(again, iou_threshold=threshold)
            output = await self._decode(again, embedding)
            points = batch.points[[row for row, _ in part]]
            finished = batch.evaluated if start == len(choices) else 0
            yield DecodedBatch(again, output, points, selection, finished)

    @property
    def _batch_size(self) -> int:
        size = self.masker.run_size.prompts(self.lease.model.name)
        return min(self.options.points_per_batch, size)

    async def _decode(self, batch: PromptBatch, embedding: Embedding) -> DecoderOutput:
        context = self.context
        context.check_deadline()
        with context.clock.stage("decode"):
            model = self.lease.model.name
            output = await self.masker.engine.decode(model, embedding, batch, context)
        self.masker.run_size.record(model, len(batch.point_labels), output.seconds)
        return output

    async def _filter(self, batch: DecodedBatch, view: CropView) -> FilteredBatch:
        # It runs at the same time as the next decode.  Only the remaining wait is charged to the
        # call's own clock.
        branched = replace(self, context=replace(self.context, clock=self.context.clock.branch()))
        passed, count = await branched._run(
            "postprocess", filters.passed_iou, batch, view, self.options
        )
        filtered = await branched._filter_pieces(batch, passed, view)
        return filters.filtered_batch(batch, count, filtered)

    async def _filter_pieces(
        self, batch: DecodedBatch, passed: list[Passed], view: CropView
    ) -> list[FilteredPiece]:
        """Filter candidates in pieces, on as many threads as are free."""
        jobs = [
            partial(filters.filter_piece, batch, piece, view, self.options, self.exclusion)
            for piece in filters.pieces(passed, view)
        ]
        with self.context.clock.stage("postprocess"):
            return await self.masker.workers.run_all(self.context, jobs)

    async def _await_filtered(self, filtering: asyncio.Task[FilteredBatch]) -> FilteredBatch:
        with self.context.clock.stage("postprocess"):
            return await filtering

    async def _add_batch(
        self, candidates: list[Candidate], batch: FilteredBatch
    ) -> list[Candidate]:
        """Return the candidates of a crop with those of one more batch added."""
        self.counts.extend(batch.counts)
        merged = candidates + batch.candidates
        for index in over_budget(merged, _MAX_LOGITS_BYTES):
            merged[index] = await self._run("postprocess", with_run_lengths, merged[index])
        return merged

    async def _finish(self, candidates: list[Candidate]) -> list[Candidate]:
        """Apply the filters over all crops."""
        if len(self.crops) > 1:
            candidates = await self._apply("crop_nms", filters.suppress_across_crops, candidates)
        if self.options.min_mask_region_area > 0:
            candidates = await self._without_small_regions(candidates)
        if self.options.max_masks > 0:
            candidates = await self._apply("max_masks", filters.keep_best, candidates)
        return candidates

    async def _without_small_regions(self, candidates: list[Candidate]) -> list[Candidate]:
        clean, area = filters.remove_small_regions, self.options.min_mask_region_area
        # One by one: the masks of a large image take long.
        cleaned = [await self._run("filter", clean, each, area) for each in candidates]
        if self.exclusion is not None:
            # Without its islands, a mask may have become one that is excluded.
            cleaned = await self._run("filter", self.exclusion.remaining_cleaned, cleaned)
        remaining = await self._run("filter", filters.suppress_cleaned, cleaned, self.options)
        self.counts.append(FilterCount("small_regions", len(candidates), len(remaining)))
        return remaining

    async def _apply(self, name: str, step: Filter, candidates: list[Candidate]) -> list[Candidate]:
        remaining = await self._run("filter", step, candidates, self.options)
        self.counts.append(FilterCount(name, len(candidates), len(remaining)))
        return remaining

    async def _records(
        self, candidates: list[Candidate], mask_format: MaskFormat, polygons: PolygonOptions
    ) -> Records:
        records = [
            await self._run("encode_masks", to_record, candidate, mask_format, polygons)
            for candidate in candidates
        ]
        return Records(tuple(records))

    async def _run(
        self, stage: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* in a worker thread and charge the time to *stage*."""
        with self.context.clock.stage(stage):
            return await self.masker.workers.run(self.context, function, *args, **kwargs)

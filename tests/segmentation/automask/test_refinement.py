"""AutoMask with ``use_m2m``, and masks that are sums of tokens: batches, progress, cancellation."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.models.families.base import MaskChoice
from samserve.segmentation.automask.events import Event, Progress, Records, Summary
from samserve.types import DynamicMultimask, Embedding, FloatArray, HqMode, ModelInfo

from tests.segmentation.use_cases import UseCases, blank
from tests.support.engines import SMALL_MODEL
from tests.support.waiting import until

SAM2_MODEL = replace(SMALL_MODEL, family="sam2", dynamic_multimask=DynamicMultimask(0.05, 0.98))
HQ_MODEL = replace(SMALL_MODEL, family="sam_hq")
REFINED = {"points_per_side": 3, "pred_iou_thresh": 0.0, "use_m2m": True}
POINTS, CANDIDATES = 9, 27


class RecordingEngine(FakeEngine):
    """Records prompts, and blocks every decode after *runs* of them."""

    def __init__(self, model: ModelInfo, runs: int = 1000) -> None:
        super().__init__(model=model)
        self.prompts: list[PromptBatch] = []
        self._runs = runs

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        if len(self.prompts) == self._runs:
            await asyncio.Event().wait()
        self.prompts.append(prompts)
        return await super().decode(model, embedding, prompts, context)

    @property
    def refining(self) -> list[PromptBatch]:
        """The batches of prompts with masks."""
        return [batch for batch in self.prompts if len(batch.mask_input)]


async def run(engine: FakeEngine, batch: int = 4, **options: Any) -> list[Event]:
    """Return the events of an AutoMask with batches of at most *batch* prompts."""
    use_cases = UseCases(engine, max_prompts_per_batch=batch)
    search = use_cases.automasker.generate(blank(90, 80), "", options, RequestContext())
    async with aclosing(search) as stream:
        events = [event async for event in stream]
    await use_cases.aclose()
    return events


def done(events: list[Event]) -> list[int]:
    """Return the numbers of finished points, as they were reported."""
    return [event.points_done for event in events if isinstance(event, Progress)]


def counts(events: list[Event]) -> dict[str, tuple[int, int]]:
    summary = events[-1]
    assert isinstance(summary, Summary)
    return {each.name: (each.count_in, each.count_out) for each in summary.filters}


async def test_batches_of_refined_masks_have_the_limit_of_prompts() -> None:
    engine = RecordingEngine(SAM2_MODEL)

    await run(engine, batch=4, **REFINED)

    assert [len(each.point_coords) for each in engine.prompts if not len(each.mask_input)] == [
        4,
        4,
        1,
    ]
    sizes = [len(each.point_coords) for each in engine.refining]
    assert (max(sizes), sum(sizes)) == (4, CANDIDATES)


async def test_every_candidate_is_refined_with_its_own_point_and_limited_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = RecordingEngine(SAM2_MODEL)
    outputs: list[FloatArray] = []
    draw = engine._draw

    def scaled(*prompt: Any) -> FloatArray:
        logits = 10 * draw(*prompt)
        outputs.append(logits)
        return logits

    monkeypatch.setattr(engine, "_draw", scaled)

    await run(engine, batch=1, **REFINED)

    first = engine.prompts[0]
    again = engine.prompts[1:4]
    assert np.abs(outputs[0][1:]).max() > 32
    for token, prompt in enumerate(again, start=1):
        assert np.array_equal(prompt.point_coords, first.point_coords)
        assert np.array_equal(prompt.point_labels, first.point_labels)
        assert np.array_equal(prompt.mask_input[0], outputs[0][token].clip(-32, 32))


@pytest.mark.parametrize("batch", [1, 4, 100])
async def test_progress_counts_each_point_once(batch: int) -> None:
    events = await run(FakeEngine(model=SAM2_MODEL), batch=batch, **REFINED)

    reported = done(events)
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0, POINTS)
    assert all(event.points_total == POINTS for event in events if isinstance(event, Progress))
    assert counts(events)["pred_iou"] == (CANDIDATES, CANDIDATES)


async def test_cancelled_refinement_ends_and_releases_the_memory_of_its_crop() -> None:
    engine = RecordingEngine(SAM2_MODEL, runs=6)
    use_cases = UseCases(engine, max_prompts_per_batch=1)
    nbytes = SAM2_MODEL.embedding_bytes
    options = {**REFINED, "points_per_side": 1, "crop_n_layers": 1}

    async def search() -> list[Event]:
        found = use_cases.automasker.generate(blank(90, 80), "", options, RequestContext())
        async with aclosing(found) as stream:
            return [event async for event in stream]

    task = asyncio.create_task(search())
    # Four decodes are those of the whole image; the crop's second is a refinement.
    await until(lambda: len(engine.prompts) == 6)
    await until(lambda: use_cases.cache.stats().bytes == 2 * nbytes)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    after = use_cases.cache.stats().bytes
    await use_cases.aclose()

    assert task.cancelled()
    assert after == nbytes


async def test_one_candidate_per_point_is_refined_without_multimask_output() -> None:
    engine = RecordingEngine(SAM2_MODEL)

    events = await run(engine, **{**REFINED, "multimask_output": False})

    assert counts(events)["pred_iou"][0] == POINTS
    assert sum(len(each.mask_input) for each in engine.refining) == POINTS


@pytest.mark.parametrize("family", ["sam1", "sam2", "sam_hq"])
async def test_predicted_iou_without_multimask_output_is_that_of_the_single_mask(
    family: str,
) -> None:
    engine = FakeEngine(model=replace(SAM2_MODEL, family=family))

    events = await run(engine, points_per_side=3, pred_iou_thresh=0.0, multimask_output=False)

    records = [record for each in events if isinstance(each, Records) for record in each.records]
    assert records
    assert {record.mask.predicted_iou for record in records} == {float(np.float32(0.9))}


async def test_masks_of_sam_hq_are_added_only_for_candidates_that_pass_the_predicted_iou(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added: list[MaskChoice] = []
    logits_of = MaskChoice.logits

    def counting(self: MaskChoice, low_res_logits: FloatArray) -> FloatArray:
        added.append(self)
        return logits_of(self, low_res_logits)

    monkeypatch.setattr(MaskChoice, "logits", counting)
    # The best multimask output of the fake engine has the predicted IoU 0.95.
    rejected = await run(FakeEngine(model=HQ_MODEL), points_per_side=3, pred_iou_thresh=0.96)
    assert (counts(rejected)["pred_iou"], added) == ((POINTS, 0), [])

    kept = await run(FakeEngine(model=HQ_MODEL), points_per_side=3, pred_iou_thresh=0.94)
    assert counts(kept)["pred_iou"] == (POINTS, POINTS)
    assert added == [MaskChoice(4, 1, (1, 4))] * POINTS


@pytest.mark.parametrize(
    ("mode", "candidates"), [(HqMode.ADDED, 1), (HqMode.ONLY, 1), (HqMode.OFF, 3), (None, 1)]
)
async def test_hq_mode_decides_the_candidates_of_a_point(
    mode: HqMode | None, candidates: int
) -> None:
    options = {"hq_mode": mode} if mode else {}

    events = await run(FakeEngine(model=HQ_MODEL), points_per_side=3, **options)

    assert counts(events)["pred_iou"][0] == candidates * POINTS

"""Embeddings that no model has computed: what a client claims does not harm the server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.security.principal import WARM_UP
from samserve.types import Embedding
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, serving_models
from tests.embedding_files.files import ENABLED, SMALL, build, enabled, facts_of, put

MODES = [mode for mode in pb.OutputMode.values() if mode != pb.OUTPUT_MODE_UNSPECIFIED]
ANY = pb.AutoMaskOptions(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)


async def use(stub: SegmentationServiceStub, embedding_id: str) -> None:
    """Call Predict in every mask format, and AutoMask; raises if one fails."""
    for mode in MODES:
        await stub.Predict(
            pb.PredictRequest(
                embedding_id=embedding_id,
                prompts=[sample_images.point_prompt()],
                output_mode=mode,
                multimask=pb.MULTIMASK_ALL,
            )
        )
    request = pb.AutoMaskRequest(embedding_id=embedding_id, options=ANY)
    assert [event async for event in stub.AutoMask(request)]


async def test_extreme_values_are_answered() -> None:
    async with serving_models(embedding_files=ENABLED) as (running, stub):
        (model,) = running.engine.models.values()
        for sign in (1, -1):
            tensors = {
                spec.name: np.full(spec.shape, sign * np.finfo(spec.dtype).max, spec.dtype)
                for spec in model.embedding
            }
            stored = (await put(stub, build(tensors, facts_of(model)))).embedding
            await use(stub, stored.id)


class Overflowing(FakeEngine):
    """Its decoder returns *value* for some logits, and for the predicted IoU."""

    def __init__(self, value: float) -> None:
        super().__init__(model=SMALL)
        self._value = value

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        output = await super().decode(model, embedding, prompts, context)
        if context.principal is WARM_UP:
            return output
        output.low_res_logits[..., ::2] = self._value
        return replace(output, predicted_iou=np.full_like(output.predicted_iou, self._value))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_numbers_that_overflow_in_the_decoder_are_answered(value: float) -> None:
    async with serving(enabled(), engine=Overflowing(value)) as (_, stub):
        await use(stub, (await put(stub, build())).embedding.id)

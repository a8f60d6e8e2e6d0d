"""What differs between families in requests and responses, with the fake engine."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from samserve.engines.fake import FakeEngine
from samserve.models.families import FAMILIES
from samserve.models.families.base import Capabilities
from samserve.types import DynamicMultimask
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.rpc.errors import failure_of
from tests.support.engines import SMALL_MODEL

RULE = DynamicMultimask(0.05, 0.98)
Stub = SegmentationServiceStub
HQ_MODES = (pb.HQ_MODE_ADDED, pb.HQ_MODE_ONLY, pb.HQ_MODE_OFF)


@asynccontextmanager
async def served(family: str, **sections: Any) -> AsyncIterator[tuple[FakeEngine, Stub]]:
    """Run the service with a model of a family; all its discs are stable."""
    engine = FakeEngine(model=replace(SMALL_MODEL, family=family, dynamic_multimask=RULE))
    async with serving(settings_with(**sections), engine=engine) as (_, stub):
        yield engine, stub


async def predict(stub: Stub, **fields: Any) -> pb.PromptResult:
    """Return the result of one point."""
    request = pb.PredictRequest(
        image=sample_images.image(480, 640),
        prompts=[sample_images.point_prompt(320, 240)],
        **fields,
    )
    (result,) = (await stub.Predict(request)).results
    return result


async def candidates(stub: Stub, **options: Any) -> int:
    """Return the number of candidates of an AutoMask with one grid point."""
    message = pb.AutoMaskOptions(points_per_side=1, pred_iou_thresh=0, **options)
    request = pb.AutoMaskRequest(image=sample_images.image(480, 640), options=message)
    events = [event async for event in stub.AutoMask(request)]
    return int(events[-1].summary.filters[0].in_count)


@pytest.mark.parametrize(
    ("family", "tokens", "hq_mode", "iou"),
    [("sam1", 4, False, 0.88), ("sam2", 4, False, 0.8), ("sam_hq", 5, True, 0.88)],
)
async def test_models_list_family_tokens_capabilities_and_defaults(
    family: str, tokens: int, hq_mode: bool, iou: float
) -> None:
    async with served(family) as (_, stub):
        response = await stub.ListModels(pb.ListModelsRequest())

    (model,) = response.models
    assert (model.family, model.mask_tokens) == (family, tokens)
    assert (model.capabilities.automask, model.capabilities.hq_mode) == (True, hq_mode)
    assert model.automask_defaults.pred_iou_thresh == iou
    assert model.automask_defaults.stability_score_thresh == 0.95
    assert model.automask_defaults.multimask_output
    assert model.automask_defaults.HasField("use_m2m")
    assert not model.automask_defaults.use_m2m
    assert model.automask_defaults.hq_mode == pb.HQ_MODE_UNSPECIFIED
    assert response.automask_defaults == model.automask_defaults


@pytest.mark.parametrize("rule", [None, RULE])
async def test_models_list_the_rule_of_stable_masks(rule: DynamicMultimask | None) -> None:
    engine = FakeEngine(model=replace(SMALL_MODEL, family="sam2", dynamic_multimask=rule))
    async with serving(engine=engine) as (_, stub):
        (model,) = (await stub.ListModels(pb.ListModelsRequest())).models

    assert model.HasField("stability_rule") == (rule is not None)
    if rule is not None:
        listed = pb.StabilityRule(delta=rule.delta, thresh=rule.thresh)
        assert model.stability_rule == listed


@pytest.mark.parametrize("family", ["sam1", "sam2"])
async def test_hq_mode_of_a_model_without_it_is_invalid(family: str) -> None:
    async with served(family) as (engine, stub):
        before = engine.counts.copy()
        image = sample_images.image()
        for mode in HQ_MODES:
            prompts = [sample_images.point_prompt()]
            request = pb.PredictRequest(image=image, prompts=prompts, hq_mode=mode)
            predicted = await failure_of(stub.Predict(request))
            options = pb.AutoMaskOptions(hq_mode=mode)
            masked = await failure_of(
                stub.AutoMask(pb.AutoMaskRequest(image=image, options=options))
            )
            assert (predicted.fields, masked.fields) == (["hq_mode"], ["options.hq_mode"])
            assert {predicted.code, masked.code} == {grpc.StatusCode.INVALID_ARGUMENT}
            assert "'fake'" in predicted.text
        assert engine.counts == before
        assert (await predict(stub, hq_mode=pb.HQ_MODE_UNSPECIFIED)).masks


SELECTIONS = {
    "unset": (pb.HQ_MODE_UNSPECIFIED, pb.MULTIMASK_AUTO, [4]),
    "added, all": (pb.HQ_MODE_ADDED, pb.MULTIMASK_ALL, [4]),
    "added, single": (pb.HQ_MODE_ADDED, pb.MULTIMASK_SINGLE, [4]),
    "only": (pb.HQ_MODE_ONLY, pb.MULTIMASK_AUTO, [4]),
    "off": (pb.HQ_MODE_OFF, pb.MULTIMASK_AUTO, [1]),
    "off, single": (pb.HQ_MODE_OFF, pb.MULTIMASK_SINGLE, [0]),
    "off, all": (pb.HQ_MODE_OFF, pb.MULTIMASK_ALL, [1, 2, 3]),
}


async def test_hq_mode_selects_the_masks() -> None:
    async with served("sam_hq") as (_, stub):
        results = {
            name: await predict(stub, hq_mode=mode, multimask=multimask)
            for name, (mode, multimask, _) in SELECTIONS.items()
        }

    tokens = {name: [mask.token_index for mask in each.masks] for name, each in results.items()}
    assert tokens == {name: expected for name, (_, _, expected) in SELECTIONS.items()}
    # The discs of tokens 1, 4 and 0 have the radii 20, 30 and 40; those of sums are between.
    area = {name: each.masks[0].area for name, each in results.items()}
    assert area["unset"] == area["added, all"]
    assert area["off"] == area["off, all"]
    assert area["off"] < area["unset"] < area["only"] < area["added, single"] < area["off, single"]
    iou = {name: each.masks[0].predicted_iou for name, each in results.items()}
    plain = {name: 0.9 if "single" in name else 0.95 for name in SELECTIONS}
    assert iou == pytest.approx(plain)


@pytest.mark.parametrize(
    ("family", "score"), [("sam1", None), ("sam2", 1 / (1 + math.exp(-4))), ("sam_hq", None)]
)
async def test_object_score_is_set_for_families_that_have_it(
    family: str, score: float | None
) -> None:
    async with served(family) as (_, stub):
        with_masks = await predict(stub)
        logits_only = await predict(stub, output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS)

    for result in (with_masks, logits_only):
        assert result.HasField("object_score") == (score is not None)
        assert result.object_score == pytest.approx(score or 0)


@pytest.mark.parametrize(("family", "limit"), [("sam1", 1000), ("sam2", 32)])
async def test_returned_logits_are_limited_by_the_family_and_masks_are_not(
    family: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = FakeEngine._draw

    def scaled(self: FakeEngine, *prompt: Any) -> np.ndarray:
        return (1000 * draw(self, *prompt)).clip(-1000, 1000).astype(np.float32)

    monkeypatch.setattr(FakeEngine, "_draw", scaled)
    async with served(family) as (_, stub):
        (mask,) = (await predict(stub, include_low_res_logits=True)).masks

    logits = np.frombuffer(mask.low_res_logits, "<f4")
    assert (logits.max(), logits.min()) == (limit, -limit)
    assert mask.stability_score > 0.99


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("sam1", {}, 3),
        ("sam2", {}, 3),
        ("sam_hq", {}, 1),
        ("sam_hq", {"hq_mode": pb.HQ_MODE_OFF}, 3),
        ("sam1", {"multimask_output": False}, 1),
        ("sam2", {"multimask_output": False}, 1),
        ("sam2", {"multimask_output": True}, 3),
    ],
)
async def test_multimask_output_decides_the_candidates_of_a_point(
    family: str, options: dict[str, Any], expected: int
) -> None:
    async with served(family) as (_, stub):
        assert await candidates(stub, **options) == expected


@pytest.mark.parametrize("family", FAMILIES)
async def test_use_m2m_decodes_every_candidate_again(family: str) -> None:
    async with served(family) as (engine, stub):
        before = engine.counts["decode_finished"]
        plain = await candidates(stub, use_m2m=False)
        once = engine.counts["decode_finished"] - before
        refined = await candidates(stub, use_m2m=True)

    assert (once, plain) == (1, refined)
    assert engine.counts["decode_finished"] - before == 3


async def test_use_m2m_of_a_model_without_mask_prompts_is_invalid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capabilities = Capabilities(points=True, boxes=True, masks=False, automask=True)
    monkeypatch.setattr(type(FAMILIES["sam2"]), "capabilities", capabilities)
    async with served("sam2") as (_, stub):
        request = pb.AutoMaskRequest(
            image=sample_images.image(), options=pb.AutoMaskOptions(use_m2m=True)
        )
        failure = await failure_of(stub.AutoMask(request))

    assert failure.fields == ["options.use_m2m"]


async def test_limit_of_logits_is_that_of_the_masks_that_a_family_returns() -> None:
    # One mask of logits and its pixels fit, three do not.
    limits = {"max_response_bytes": 2 * 64 * 64 * 4}
    logits = {"multimask": pb.MULTIMASK_ALL, "output_mode": pb.OUTPUT_MODE_LOW_RES_LOGITS}
    async with served("sam_hq", limits=limits) as (_, stub):
        assert len((await predict(stub, **logits)).masks) == 1
        prompts = [sample_images.point_prompt()]
        request = pb.PredictRequest(
            image=sample_images.image(), prompts=prompts, hq_mode=pb.HQ_MODE_OFF, **logits
        )
        failure = await failure_of(stub.Predict(request))

    assert failure.fields == ["include_low_res_logits"]

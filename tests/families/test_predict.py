"""Predict with every family in the whole service, against the original implementations.

The service runs the ONNX files; the originals run their own networks, with the resized pixels and
the rounded embeddings of samserve.  Then each rule of samserve is altered, one at a time, and the
comparison must report differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from samserve.core import rle
from samserve.models.families import SAM1, SAM2, SAM_HQ, sam2
from samserve.segmentation import predict as predicting_rules
from samserve.types import HqMode, MaskSelection
from samserve.v1 import samserve_pb2 as pb
from torch.nn import functional

from tests.families.predicting import (
    MODES,
    PHOTOS,
    SIDE,
    PromptCase,
    Served,
    check_mask,
    check_result,
    expected_of,
    logits_of,
    message,
    predict,
    prompt_cases,
    share,
)
from tests.support.cases import check_all

# One server for all tests of a family.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "photo_name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (number > 0))
        for number, name in enumerate(PHOTOS)
    ],
)
async def test_masks_of_every_prompt_equal_those_of_the_original(
    photo_name: str, served: Served
) -> None:
    photo = PHOTOS[photo_name]()
    cases = prompt_cases(photo, 1)
    expected = {
        (mode, kind): expected_of(served, photo, case, MODES[served.family.name][mode])
        for mode in MODES[served.family.name]
        for kind, case in cases.items()
    }

    results = await results_of(served, photo, cases)

    check_all(
        lambda key: check_result(results[key], expected[key]), {str(key): key for key in expected}
    )
    assert np.median([share(each) for each in expected.values()]) > 0.001
    if served.family.name == "sam2":
        assert {mask.token_index for mask in results["all", "point"].masks} == {1, 2, 3}
        assert 0 in {results["auto", kind].masks[0].token_index for kind in cases}
    else:
        assert {mask.token_index for each in results.values() for mask in each.masks} == {4}


async def results_of(
    served: Served, photo: np.ndarray, cases: dict[str, PromptCase]
) -> dict[tuple[str, str], pb.PromptResult]:
    """Return the results of all prompts in every mode of the family."""
    prompts = [message(case) for case in cases.values()]
    return {
        (name, kind): result
        for name, mode in MODES[served.family.name].items()
        for kind, result in zip(
            cases, await predict(served, photo, *prompts, **mode.options), strict=True
        )
    }


async def test_plain_masks_of_sam_hq_are_what_its_additional_mask_is_added_to(
    served: Served,
) -> None:
    if not served.family.capabilities.hq_mode:
        return
    photo = PHOTOS["larger than the frame"]()
    prompts = [message(case) for case in prompt_cases(photo, 2).values()]
    added, only, plain = [
        await predict(served, photo, *prompts, hq_mode=mode)
        for mode in (pb.HQ_MODE_ADDED, pb.HQ_MODE_ONLY, pb.HQ_MODE_OFF)
    ]
    everything = await predict(
        served, photo, *prompts, hq_mode=pb.HQ_MODE_OFF, multimask=pb.MULTIMASK_ALL
    )

    for whole, hq, off, three in zip(added, only, plain, everything, strict=True):
        total = logits_of(whole.masks[0])
        assert np.allclose(total, logits_of(hq.masks[0]) + logits_of(off.masks[0]), atol=1e-4)
        assert np.abs(logits_of(hq.masks[0])).max() > 1
        assert whole.masks[0].predicted_iou == off.masks[0].predicted_iou
        assert off.masks[0].token_index < 4
        assert [mask.token_index for mask in three.masks] == [1, 2, 3]
        if off.masks[0].token_index:
            same = three.masks[off.masks[0].token_index - 1]
            assert np.array_equal(logits_of(same), logits_of(off.masks[0]))


async def test_refining_with_returned_logits_equals_the_original(served: Served) -> None:
    photo = PHOTOS["larger than the frame"]()
    cases = prompt_cases(photo, 3)
    first = served.reference.predict(photo, cases["point"], multimask=True)
    best = int(np.argmax(first.predicted_iou))
    refining = PromptCase(cases["three points"].points, logits=first.low_res[best])
    expected = served.reference.predict(photo, refining, multimask=False)

    (result,) = await predict(served, photo, message(cases["point"]), multimask=pb.MULTIMASK_ALL)
    returned = logits_of(result.masks[best])
    (refined,) = await predict(served, photo, message(PromptCase(refining.points, logits=returned)))

    assert np.abs(returned).max() <= served.family.max_returned_logit
    if served.family.name == "sam2":
        assert np.abs(returned).max() == 32
    check_mask(refined.masks[0], expected, 0)


async def test_binary_mask_is_converted_to_the_frame_of_the_family(served: Served) -> None:
    photo = np.ascontiguousarray(skimage.data.coffee()[:256, :512])
    mask = np.hypot(*np.ogrid[-100:156, -200:312]) < 60
    size = pb.ImageSize(height=256, width=512)
    binary = pb.MaskInput(binary=pb.CocoRle(size=size, counts=rle.encode(mask).counts))
    # In the frame, a padded image has 64 x 128 cells of 4 pixels, of which 32 x 64 are low-res.
    area = (4, 8) if served.family.fills_frame else (8, 8)
    covered = functional.avg_pool2d(torch.from_numpy(mask[None, None]).float(), area)[0, 0]
    logits = np.full((SIDE, SIDE), -10, np.float32)
    logits[: len(covered)] = 20 * covered - 10
    points = np.array([[200.0, 100.0, 1]])
    case = PromptCase(points, logits=logits)

    (expected,) = await predict(served, photo, message(case))
    prompt = message(PromptCase(points))
    prompt.mask.CopyFrom(binary)
    (actual,) = await predict(served, photo, prompt)

    assert np.allclose(logits_of(actual.masks[0]), logits_of(expected.masks[0]), atol=0.01)


Patch = Callable[[pytest.MonkeyPatch], None]


def family(rules: Any, **changed: Any) -> Patch:
    """Alter attributes of a family."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        for name, value in changed.items():
            patch.setattr(type(rules), name, value)

    return apply


def no_padding_beside_a_box(self: Any, points: Any, labels: Any, box: Any) -> Any:
    coords, values = SAM2_PROMPT(self, points, labels, box)
    return (coords, values) if box is None else (coords[:-1], values[:-1])


def hq_left_out(self: Any, selection: MaskSelection, *output: Any) -> Any:
    return HQ_CHOOSE(self, replace(selection, hq_mode=HqMode.OFF), *output)


def never_ambiguous(self: Any, selection: MaskSelection, labels: Any, *output: Any) -> Any:
    return HQ_CHOOSE(self, selection, np.zeros(3), *output)


def always_stable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sam2, "is_stable", lambda low_res, rule: True)


def logit_as_score(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predicting_rules, "probability", lambda logit: logit)


SAM2_PROMPT, HQ_CHOOSE = type(SAM2).prompt, type(SAM_HQ).choose
ALTERED: dict[str, dict[str, Patch]] = {
    "sam2": {
        "pad instead of stretch": family(
            SAM2, transform=type(SAM1).transform, place=type(SAM1).place
        ),
        "two-step upsampling": family(SAM2, upsampling=type(SAM1).upsampling),
        "no padding token beside a box": family(SAM2, prompt=no_padding_beside_a_box),
        "always the single mask": always_stable,
        "logits without a limit": family(SAM2, max_returned_logit=np.inf),
        "the logit as the object score": logit_as_score,
    },
    "sam_hq": {
        "stretch instead of pad": family(
            SAM_HQ, transform=type(SAM2).transform, place=type(SAM2).place
        ),
        "one-step upsampling": family(SAM_HQ, upsampling=type(SAM2).upsampling),
        "a padding token beside a box": family(SAM_HQ, prompt=type(SAM2).prompt),
        "the additional mask left out": family(SAM_HQ, choose=hq_left_out),
        "the single mask for ambiguous prompts": family(SAM_HQ, choose=never_ambiguous),
    },
}


@pytest.mark.slow
async def test_altered_rules_are_detected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (name, patch) in enumerate(ALTERED[served.family.name].items()):
        # Another photo each time: the embedding of the last one is in the cache.
        photo = np.roll(PHOTOS["larger than the frame"](), 40 * number, axis=1)
        cases = prompt_cases(photo, 1)
        with monkeypatch.context() as context:
            patch(context)
            results = await results_of(served, photo, cases)

        failed = 0
        for (mode, kind), result in results.items():
            expected = expected_of(served, photo, cases[kind], MODES[served.family.name][mode])
            try:
                check_result(result, expected)
            except AssertionError:
                failed += 1
        assert failed, name

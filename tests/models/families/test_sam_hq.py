"""The rules of SAM-HQ, compared with `segment-anything-hq` where it has them."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from samserve.engines.fake import MODEL
from samserve.models.families import SAM1, SAM_HQ
from samserve.models.families.base import MaskChoice
from samserve.types import FloatArray, HqMode, MaskSelection, Multimask, Size

from tests.core import photos
from tests.oracle.sam_hq import MaskDecoderHQ, SamAutomaticMaskGenerator, SamPredictor

HQ = 4
MODES = (HqMode.ADDED, HqMode.ONLY)
SELECTIONS = [MaskSelection(multimask, mode) for multimask in Multimask for mode in HqMode]


def outputs(seed: int) -> tuple[FloatArray, FloatArray]:
    """Return logits ``[5,4,4]`` and predicted IoUs ``[5]``, some of which are equal."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(5, 4, 4)).astype(np.float32)
    return logits, random.integers(0, 3, 5).astype(np.float32)


def reference(
    logits: FloatArray, iou: FloatArray, *, multimask: bool, hq_only: bool
) -> tuple[FloatArray, float]:
    """Return the mask ``[4,4]`` that the original chooses, and its predicted IoU."""
    decoder = SimpleNamespace(
        num_mask_tokens=5,
        embedding_encoder=lambda _: torch.zeros(1),
        compress_vit_feat=lambda _: torch.zeros(1),
        predict_masks=lambda **_: (
            torch.from_numpy(logits)[None],
            torch.from_numpy(iou)[None, :HQ],
        ),
    )
    empty = torch.zeros(1, 1, 1, 1)
    masks, scores = MaskDecoderHQ.forward(
        decoder, empty, empty, empty, empty, multimask, hq_only, [empty]
    )
    assert masks.shape == (1, 1, 4, 4)
    return masks[0, 0].numpy(), float(scores)


def chosen(selection: MaskSelection, label_count: int, seed: int) -> list[MaskChoice]:
    logits, iou = outputs(seed)
    labels = np.ones(label_count, np.float32)
    return list(SAM_HQ.choose(selection, labels, iou, logits, None))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multimask", Multimask)
@pytest.mark.parametrize("label_count", [0, 2, 3, 5])
def test_the_mask_and_its_predicted_iou_are_those_of_the_reference(
    multimask: Multimask, mode: HqMode, label_count: int
) -> None:
    """AUTO is multimask output for at most two tokens, as for SAM 1."""
    several = multimask is Multimask.ALL or (multimask is Multimask.AUTO and label_count <= 2)
    for seed in range(20):
        logits, iou = outputs(seed)
        mask, score = reference(logits, iou, multimask=several, hq_only=mode is HqMode.ONLY)

        (choice,) = chosen(MaskSelection(multimask, mode), label_count, seed)

        assert choice.token_index == HQ
        assert np.array_equal(choice.logits(logits), mask)
        assert iou[choice.iou_token] == score


@pytest.mark.parametrize("multimask", Multimask)
@pytest.mark.parametrize("label_count", [0, 2, 3])
def test_without_the_hq_token_the_masks_are_those_of_sam1(
    multimask: Multimask, label_count: int
) -> None:
    labels = np.ones(label_count, np.float32)
    for seed in range(20):
        logits, iou = outputs(seed)
        plain = SAM1.choose(MaskSelection(multimask), labels, iou[:HQ], logits[:HQ], None)

        assert chosen(MaskSelection(multimask, HqMode.OFF), label_count, seed) == list(plain)


def test_the_default_mode_adds_the_hq_token() -> None:
    for multimask in Multimask:
        default = chosen(MaskSelection(multimask), 2, 0)

        assert default == chosen(MaskSelection(multimask, HqMode.ADDED), 2, 0)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_the_number_of_masks_is_known_before_they_are_decoded(selection: MaskSelection) -> None:
    assert len(chosen(selection, 2, 0)) == SAM_HQ.masks_per_prompt(selection)


def test_the_compared_mask_is_that_of_an_ambiguous_prompt() -> None:
    for seed in range(20):
        (choice,) = chosen(MaskSelection(Multimask.ALL), 2, seed)

        assert SAM_HQ.best_choice(outputs(seed)[1]) == choice


def test_defaults_of_automask_are_those_of_the_reference() -> None:
    parameters = inspect.signature(SamAutomaticMaskGenerator).parameters
    ours = asdict(SAM_HQ.automask)

    assert ours == {name: parameters[name].default for name in ours}


@pytest.mark.parametrize("name", ["coffee 1080x1920", "coffee panorama 97x1500"])
def test_image_is_resized_as_in_the_reference_and_zero_padded(name: str) -> None:
    rgb = photos.odd_sizes()[name]
    encoder = SimpleNamespace(img_size=1024)
    resized = SamPredictor(SimpleNamespace(image_encoder=encoder)).transform.apply_image(rgb)

    padded = SAM_HQ.place(rgb, SAM_HQ.transform(Size(*rgb.shape[:2]), MODEL))

    assert np.array_equal(padded[: len(resized)], resized)
    assert not padded[len(resized) :].any()

"""The exported SAM-HQ against `segment-anything-hq`, on photos of odd sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from samserve.types import HqMode, MaskSelection, Multimask
from torch import Tensor

from tests.export.conftest import LARGE
from tests.export.equality import relative_l2
from tests.export.hq_pair import (
    HQ,
    HqOutput,
    HqPair,
    answer,
    assert_same_answers,
    assert_same_refined_answers,
    equal_pixels,
    upsampled,
)
from tests.export.prompts import prompts_of
from tests.oracle import photos, sam_hq
from tests.oracle.sam import standardised


@pytest.fixture(scope="module")
def pair() -> HqPair:
    """A toy with masks of a third of an image; the original decodes rounded embeddings."""
    sam = sam_hq.round_embeddings_to_half(sam_hq.build(foreground=LARGE))
    return HqPair(sam, [photos.coffee_427x640, photos.hubble_1800x1200()[::4, ::4].copy])


@pytest.mark.parametrize("index", [0, 1])
def test_both_tensors_equal_the_original_and_are_rounded_once(pair: HqPair, index: int) -> None:
    view, other = pair.views[index], pair.views[index - 1]

    for number in (0, 1):
        assert relative_l2(view.uncast[number], view.original[number]) < 1e-4
        assert relative_l2(other.original[number], view.original[number]) > 0.1
        rounded = view.uncast[number].astype(np.float16)
        np.testing.assert_array_equal(view.embedding[number], rounded)


def test_the_hq_features_are_those_of_both_networks_and_of_the_first_global_block(
    pair: HqPair,
) -> None:
    view, decoder = pair.views[0], pair.original.mask_decoder
    predictor = view.predictor
    first, last = predictor.interm_features
    altered = [
        decoder.embedding_encoder(predictor.features),
        decoder.compress_vit_feat(first.permute(0, 3, 1, 2)),
        sam_hq.hq_features(pair.original, predictor.features, last),
    ]

    for features in altered:
        assert relative_l2(view.uncast[1], features.numpy()) > 0.05


def test_photos_embedded_in_a_batch_equal_those_embedded_alone(pair: HqPair) -> None:
    image = np.concatenate([view.image for view in pair.views])
    image_size = np.concatenate([view.image_size for view in pair.views])

    _, uncast = pair.embed(image, image_size)

    for number in (0, 1):
        for row, view in zip(uncast[number], pair.views, strict=True):
            assert relative_l2(row, view.uncast[number][0]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "photo_count", "prompt_count"),
    [
        ("points1", 1, 5),
        ("points1", 2, 1),
        ("points2", 2, 3),
        ("points4", 1, 1),
        ("points4", 2, 5),
        ("box", 2, 3),
        ("points1+box", 1, 3),
        ("points2+box+mask", 2, 3),
        ("points1+mask", 1, 5),
        ("mask", 2, 1),
    ],
)
def test_every_selection_for_every_prompt_equals_the_original(
    pair: HqPair, kind: str, photo_count: int, prompt_count: int
) -> None:
    views = pair.views[:photo_count]
    sets = [
        prompts_of(kind, view, seed=7 * number + 1, count=prompt_count)
        for number, view in enumerate(views)
    ]

    outputs = pair.decode(views, sets)

    assert outputs[0].logits.shape == (prompt_count, 5, 64, 64)
    for view, prompts, output in zip(views, sets, outputs, strict=True):
        assert_same_answers(view, prompts, output)


def test_a_refined_mask_equals_the_original(pair: HqPair) -> None:
    first = [prompts_of("points1", view, seed=5) for view in pair.views]
    more = [prompts_of("points2", view, seed=6) for view in pair.views]

    assert_same_refined_answers(pair, first, more)


def test_the_fifth_predicted_iou_is_that_of_the_best_multimask_output(pair: HqPair) -> None:
    view = pair.views[0]

    (output,) = pair.decode([view], [prompts_of("points1", view, seed=3, count=5)])

    np.testing.assert_array_equal(output.iou[:, HQ], output.iou[:, 1:HQ].max(1))


def test_the_comparison_notices_altered_masks(pair: HqPair) -> None:
    """HQ features left out, the sum left out, and the order of the transformers library."""
    view = pair.views[0]
    prompts = prompts_of("points1", view, seed=3, count=5)
    (output,) = pair.decode([view], [prompts])
    (without_features,) = pair.decode([view], [prompts], features=0.0)
    expected = [
        answer(view, prompts, index, multimask=True, hq_only=False)[0] for index in range(5)
    ]
    best = output.iou[:, 1:HQ].argmax(1) + 1

    def masks(source: HqOutput, *tokens: Sequence[int]) -> list[Tensor]:
        return [
            upsampled(view, sum(source.logits[index, token[index]] for token in tokens))
            for index in range(5)
        ]

    hq = [HQ] * 5
    assert equal(masks(output, best, hq), expected)
    assert len(set(best)) > 1
    for altered in (
        masks(without_features, best, hq),
        masks(output, best),
        masks(output, hq),
        # The tokens in their order, as if they were sorted already.
        masks(output, [1] * 5, hq),
    ):
        assert not equal(altered, expected)


def test_masks_equal_those_of_the_transformers_library_once_repaired(pair: HqPair) -> None:
    """It returns the three multimask outputs sorted by predicted IoU, each with token 4 added."""
    view, state = pair.views[0], pair.original.state_dict()
    library = sam_hq.library(sam_hq.TOY, state)
    sam_hq.repair(library)
    prompts = prompts_of("points2", view, seed=9, count=3)
    assert prompts.coords is not None
    assert prompts.labels is not None
    photo = photos.coffee_427x640()
    pixels = standardised(pair.original, [photo])
    (output,) = pair.decode([view], [prompts])

    for multimask, hq_only in [(False, False), (False, True), (True, False)]:
        found = library(
            pixel_values=pixels,
            input_points=prompts.coords[None],
            input_labels=prompts.labels[None].int(),
            multimask_output=multimask,
            hq_token_only=hq_only,
        )
        mode = HqMode.ONLY if hq_only else HqMode.ADDED
        selection = MaskSelection(Multimask.ALL if multimask else Multimask.SINGLE, mode)
        for index in range(3):
            (choice,) = output.chosen(index, selection)
            ours = upsampled(view, choice.logits(output.logits[index]))
            others = found.pred_masks[0, index].numpy()
            assert len(others) == (3 if multimask else 1)
            # The embedding is not rounded there.
            assert equal_pixels(ours, upsampled(view, others[0])) >= 0.999
            assert output.iou[index, choice.iou_token] == pytest.approx(
                float(found.iou_scores[0, index, 0]), abs=1e-3
            )


def equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(equal_pixels(one, other) >= 0.9999 for one, other in pairs)

"""Published sizes of SAM-HQ against the original.

`test_sam_hq.py` compares a toy, which runs the same code; the encoder of Light HQ-SAM is another.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from samserve.export.families import sam_hq as family
from samserve.export.sources.source import Checkpoint

from tests.export.equality import relative_l2
from tests.export.hq_pair import HqPair, assert_same_answers, assert_same_refined_answers
from tests.export.prompts import prompts_of
from tests.oracle import photos, sam_hq
from tests.oracle.redraw import redraw
from tests.oracle.sam import FOREGROUND, MOBILE, VIT_B, standardised


@pytest.mark.slow
def test_the_features_of_light_hq_sam_are_those_of_its_second_stage() -> None:
    original = sam_hq.original(MOBILE)
    redraw(original)
    # Switching refreshes the expanded attention biases that the encoder caches.
    original.train().eval().requires_grad_(False)
    image = np.tile(photos.coffee_427x640(), (3, 2, 1))[:1024, :1024].copy()
    embedding, (early,) = original.image_encoder(standardised(original, [image]))
    expected = [embedding, sam_hq.hq_features(original, embedding, early)]

    graph = family.load(Checkpoint(dict(original.state_dict()))).encoder_graph().eval()
    found = graph(torch.from_numpy(image)[None], torch.tensor([[1024, 1024]]))[2:]

    for ours, right in zip(found, expected, strict=True):
        assert relative_l2(ours.numpy(), right.numpy()) < 1e-4


@pytest.fixture(
    scope="module", params=[pytest.param(VIT_B, id="vit_b"), pytest.param(MOBILE, id="vit_tiny")]
)
def sized(request: pytest.FixtureRequest) -> Iterator[HqPair]:
    """One size; only one is in memory."""
    sam = sam_hq.build(request.param, photos.calibration()[:1], foreground=FOREGROUND)
    smaller = photos.hubble_1800x1200()[::2, ::2].copy
    yield HqPair(sam_hq.round_embeddings_to_half(sam), [photos.coffee_427x640, smaller])
    gc.collect()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_both_tensors_equal_the_original(sized: HqPair) -> None:
    for view in sized.views:
        for number in (0, 1):
            assert relative_l2(view.uncast[number], view.original[number]) < 1e-4
            rounded = view.uncast[number].astype(np.float16)
            np.testing.assert_array_equal(view.embedding[number], rounded)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_both_tensors_are_the_same_in_a_batch(sized: HqPair) -> None:
    image, image_size = (
        np.concatenate([getattr(view, name) for view in sized.views])
        for name in ("image", "image_size")
    )

    _, uncast = sized.embed(image, image_size)

    for number in (0, 1):
        for row, view in zip(uncast[number], sized.views, strict=True):
            assert relative_l2(row, view.uncast[number][0]) < 1e-5


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "photo_count", "prompt_count"),
    [
        ("points1", 1, 1),
        ("points1", 2, 5),
        ("points2", 1, 5),
        ("points4", 2, 1),
        ("box", 1, 1),
        ("box", 2, 3),
        ("points1+box", 1, 3),
        ("points2+box", 2, 3),
        ("points4+box", 1, 3),
        ("mask", 1, 3),
        ("mask", 2, 1),
        ("points1+mask", 2, 3),
        ("points4+mask", 1, 5),
        ("points2+box+mask", 2, 1),
    ],
)
def test_masks_equal_the_original(
    sized: HqPair, kind: str, photo_count: int, prompt_count: int
) -> None:
    views = sized.views[:photo_count]
    sets = [
        prompts_of(kind, view, seed=7 * number + 3, count=prompt_count)
        for number, view in enumerate(views)
    ]

    outputs = sized.decode(views, sets)

    for view, prompts, output in zip(views, sets, outputs, strict=True):
        assert output.logits.std() > 2
        assert_same_answers(view, prompts, output)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_refined_mask_equals_the_original(sized: HqPair) -> None:
    first = [prompts_of("points1", view, seed=5, count=1) for view in sized.views]
    more = [prompts_of("points2", view, seed=6, count=1) for view in sized.views]

    assert_same_refined_answers(sized, first, more)

"""The exported pair against the original Segment Anything, on photos of odd sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from samserve.export.checkpoint import open_network
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.onnx_file import serialized

from tests.export.config_check import unstamped
from tests.export.conftest import PHOTOS, Pair, every_encoder
from tests.export.equality import (
    assert_informative,
    assert_same_logits,
    assert_same_masks,
    relative_l2,
)
from tests.export.prompts import (
    PromptSet,
    decode_exported,
    decode_original,
    photo_logits,
    prompts_of,
)

KINDS = ["points1", "points3", "box", "points1+box", "points2+box+mask", "mask"]


@every_encoder
@pytest.mark.parametrize("index", range(3), ids=[make.__name__ for make in PHOTOS])
def test_the_embedding_equals_the_original_and_is_rounded_once(pair: Pair, index: int) -> None:
    view, other = pair.views[index], pair.views[index - 1]

    assert relative_l2(view.uncast, view.original) < 1e-4
    assert relative_l2(other.original, view.original) > 0.1
    assert view.stored.dtype == np.float16
    np.testing.assert_array_equal(view.stored, view.uncast.astype(np.float16))


@every_encoder
def test_photos_embedded_in_a_batch_equal_those_embedded_alone(pair: Pair) -> None:
    views = pair.views
    image = np.concatenate([view.image for view in views])
    image_size = np.concatenate([view.image_size for view in views])

    _, uncast = pair.embed(image, image_size)

    for row, view in zip(uncast, views, strict=True):
        assert relative_l2(row, view.uncast[0]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_every_kind_on_three_photos_in_one_call(pair: Pair, kind: str) -> None:
    views = list(pair.views)
    sets = [prompts_of(kind, view, seed=7 * number + 1) for number, view in enumerate(views)]
    expected = [
        decode_original(pair, view, prompts) for view, prompts in zip(views, sets, strict=True)
    ]

    outputs = decode_exported(pair, views, sets)

    for view, output, right in zip(views, outputs, expected, strict=True):
        assert_informative(right)
        assert_same_logits(output, right)
        assert_same_masks(view, output, right)


@pytest.mark.parametrize("masks", [0, 1, 2])
def test_mask_inputs_belong_to_the_first_prompts(pair: Pair, masks: int) -> None:
    views = list(pair.views[:2])
    sets = [prompts_of("points1+mask", view, seed=3) for view in views]
    # An array of length 0 means no mask.
    sets = [replace(prompts, masks=prompts.masks[:masks]) for prompts in sets]

    outputs = decode_exported(pair, views, sets)

    for view, prompts, output in zip(views, sets, outputs, strict=True):
        assert_same_logits(output, decode_original(pair, view, prompts))


def test_a_mask_input_changes_the_result(pair: Pair) -> None:
    view = pair.views[0]
    with_mask = prompts_of("points1+mask", view, seed=3)
    without = replace(with_mask, masks=None)

    (masked,), (plain,) = (
        decode_exported(pair, [view], [prompts]) for prompts in (with_mask, without)
    )

    assert np.abs(masked.logits - plain.logits).max() > plain.logits.std()


def test_many_prompts_on_one_photo(pair: Pair) -> None:
    view = pair.views[0]
    prompts = prompts_of("points1", view, seed=11, count=8)
    expected = decode_original(pair, view, prompts)

    (output,) = decode_exported(pair, [view], [prompts])

    assert_same_logits(output, expected)
    assert_same_masks(view, output, expected)
    foreground = (photo_logits(view, expected, expected.best) > 0).mean((1, 2))
    assert ((foreground > 0.05) & (foreground < 0.95)).mean() > 0.5
    assert (expected.iou > 0.88).mean() == pytest.approx(0.5, abs=0.35)


@pytest.mark.parametrize(("photos", "count"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_prompts_in_a_batch_are_independent(pair: Pair, photos: int, count: int) -> None:
    views = list(pair.views[:photos])
    together = [
        prompts_of("points3", view, seed=number, count=count) for number, view in enumerate(views)
    ]
    last = slice(count - 1, count)
    alone = PromptSet(together[-1].coords[last], together[-1].labels[last])

    output = decode_exported(pair, views, together)[-1]

    (expected,) = decode_exported(pair, [views[-1]], [alone])
    assert np.abs(output.logits[-1:] - expected.logits).max() < 1e-4 * expected.logits.std()


def test_an_offset_of_half_a_pixel_changes_the_result(pair: Pair) -> None:
    view = pair.views[0]
    prompts = prompts_of("points1", view, seed=5)
    moved = replace(prompts, coords=prompts.coords + 0.5)
    expected = decode_original(pair, view, prompts)

    (output,) = decode_exported(pair, [view], [moved])

    assert np.abs(output.logits - expected.logits).max() > 1e-3 * expected.logits.std()


def test_an_additional_padding_point_changes_the_result(pair: Pair) -> None:
    view = pair.views[0]
    prompts = prompts_of("points1", view, seed=5)
    padded = PromptSet(
        torch.cat([prompts.coords, torch.zeros(2, 1, 2)], 1),
        torch.cat([prompts.labels, torch.full((2, 1), -1.0)], 1),
    )

    (output,) = decode_exported(pair, [view], [padded])

    assert_same_logits(output, decode_original(pair, view, padded))
    (plain,) = decode_exported(pair, [view], [prompts])
    assert np.abs(output.logits - plain.logits).max() > 1e-3 * plain.logits.std()


@every_encoder
def test_exporting_again_gives_the_same_bytes(pair: Pair) -> None:
    sam = open_network(pair.checkpoint)[0]

    assert serialized(export_decoder(sam)) == unstamped(pair.decoder_path)
    assert serialized(export_encoder(sam)) == unstamped(pair.encoder_path)

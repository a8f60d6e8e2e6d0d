"""The functions of the core, compared with those of `segment-anything`."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samserve.core import geometry, grid, masks, nms, regions, rle
from samserve.core.upsampling import Upsampling, upscale_logits
from samserve.types import Array, BoolArray, FloatArray, Size, UInt8Array

from tests.core import logits as maps
from tests.core import photos
from tests.oracle import torchvision_shim
from tests.support.examples import examples

torchvision_shim.install()

from segment_anything.modeling import Sam  # noqa: E402
from segment_anything.utils import amg  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

upsampling_between = partial(Upsampling.between, model_side=1024, low_res_side=256)
TRANSFORM = ResizeLongestSide(1024)
PHOTOS = photos.odd_sizes()
SIZES = [Size(1080, 1920), Size(300, 451), Size(1411, 1411), Size(1031, 761), Size(97, 1500)]
sides = st.integers(1, 16384)
bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def reference_logits(low_res: FloatArray, resized: Size, image: Size) -> torch.Tensor:
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=1024))
    sizes = (resized.height, resized.width), (image.height, image.width)
    upsampled: torch.Tensor = Sam.postprocess_masks(
        sam, torch.from_numpy(low_res)[None, None], *sizes
    )
    return upsampled[0, 0]


@examples(500)
@given(sides, sides)
def test_resized_size_matches_the_reference(height: int, width: int) -> None:
    expected = TRANSFORM.get_preprocess_shape(height, width, 1024)

    actual = geometry.resize_longest_side(Size(height, width), 1024)

    assert (actual.height, actual.width) == tuple(max(side, 1) for side in expected)


@pytest.mark.parametrize("name", list(PHOTOS))
def test_image_is_resized_by_pillow_with_antialiasing(name: str) -> None:
    rgb = PHOTOS[name]
    resized = geometry.resize_longest_side(Size(*rgb.shape[:2]), 1024)

    actual = geometry.resize_image(rgb, resized)

    assert np.array_equal(actual, TRANSFORM.apply_image(rgb))


def test_opencv_would_resize_to_other_bytes() -> None:
    rgb: UInt8Array = PHOTOS["coffee 1080x1920"]

    by_opencv = cv2.resize(rgb, (1024, 576), interpolation=cv2.INTER_LINEAR)

    assert not np.array_equal(by_opencv, geometry.resize_image(rgb, Size(576, 1024)))


@settings(deadline=None)
@given(sides, sides, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_transformed_points_and_boxes_match_the_reference(
    height: int, width: int, fractions: list[tuple[float, float]]
) -> None:
    image = Size(height, width)
    resized = geometry.resize_longest_side(image, 1024)
    if 0 in TRANSFORM.get_preprocess_shape(height, width, 1024):
        return
    points = np.array(fractions) * [width, height]
    boxes = np.concatenate([points, points[::-1]], axis=1)

    scaled_points = geometry.points_to_model_frame(points, image, resized)
    corners = geometry.points_to_model_frame(boxes.reshape(-1, 2, 2), image, resized)

    assert np.array_equal(scaled_points, TRANSFORM.apply_coords(points, (height, width)))
    assert np.array_equal(corners.reshape(-1, 4), TRANSFORM.apply_boxes(boxes, (height, width)))


@pytest.mark.parametrize("image", [*SIZES, Size(240, 320), Size(2048, 2017)], ids=str)
def test_upsampling_matches_torch(image: Size) -> None:
    resized = geometry.resize_longest_side(image, 1024)
    for low_res in [
        *maps.blobs(1, 3, resized),
        maps.difficult()["noise"],
        maps.difficult()["corners"],
    ]:
        expected = reference_logits(low_res, resized, image).numpy()

        actual = upscale_logits(low_res, upsampling_between(resized, image))

        assert np.abs(actual - expected).max() < 1e-5


@pytest.mark.parametrize("image", SIZES, ids=str)
def test_summary_matches_the_reference(image: Size) -> None:
    resized = geometry.resize_longest_side(image, 1024)
    upsampling = upsampling_between(resized, image)
    for low_res in maps.blobs(2, 8, resized):
        logits = reference_logits(low_res, resized, image)
        mask = logits > 0

        summary = masks.summarize(low_res, upsampling, level=0, offset=1)

        assert summary.box_xyxy == tuple(amg.batched_mask_to_box(mask).tolist())
        assert summary.area == pytest.approx(int(mask.sum()), abs=1)
        expected = float(amg.calculate_stability_score(logits[None], 0.0, 1.0)[0])
        # The reference returns NaN for an empty mask, which passes no threshold.
        assert summary.stability == pytest.approx(np.nan_to_num(expected), abs=1e-4)


@settings(deadline=None)
@given(bool_masks)
def test_box_of_any_mask_matches_the_reference(mask: BoolArray) -> None:
    (expected,) = amg.batched_mask_to_box(torch.from_numpy(mask.copy())[None]).tolist()

    assert masks.mask_to_box(mask) == tuple(expected)


@settings(deadline=None)
@given(st.integers(8, 64), st.integers(0, 3), st.integers(1, 2))
def test_grids_match_the_reference(n: int, n_layers: int, downscale: int) -> None:
    expected = amg.build_all_layer_point_grids(n, n_layers, downscale)

    actual = grid.layer_grids(n, n_layers, downscale)

    assert len(actual) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


@settings(deadline=None)
@given(st.integers(64, 5000), st.integers(64, 5000), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_match_the_reference(height: int, width: int, n_layers: int, overlap: float) -> None:
    boxes, layers = amg.generate_crop_boxes((height, width), n_layers, overlap)

    actual = geometry.crop_boxes(Size(height, width), n_layers, overlap)

    assert [list(box) for _, box in actual] == boxes
    assert [layer for layer, _ in actual] == layers


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_boxes_near_a_crop_edge_match_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, top, more = rng.integers(0, 2, 3).tolist()
    crop = (left * 60, top * 35, 300, 350 + more * 50)
    boxes = rng.integers(0, 300, (50, 4))
    expected = amg.is_box_near_crop_edge(torch.from_numpy(boxes), list(crop), [0, 0, 320, 400])

    actual = geometry.near_crop_edge(boxes, crop, Size(400, 320))

    assert actual.tolist() == expected.tolist()


@settings(deadline=None)
@given(bool_masks, st.integers(0, 60), st.sampled_from(["holes", "islands"]))
def test_removal_of_small_regions_matches_the_reference(
    mask: BoolArray, area: int, mode: Any
) -> None:
    expected, expected_change = amg.remove_small_regions(mask, area, mode)

    actual, change = regions.remove_small_regions(mask, area, mode)

    assert change == expected_change
    assert np.array_equal(actual, expected)


@settings(deadline=None)
@given(bool_masks)
def test_run_lengths_match_the_reference(mask: BoolArray) -> None:
    (expected,) = amg.mask_to_rle_pytorch(torch.from_numpy(mask.copy())[None])
    packed = amg.coco_encode_rle(expected)

    actual = rle.encode(mask)

    assert rle.uncompressed(actual) == expected["counts"]
    assert actual.counts == packed["counts"]
    assert [actual.size.height, actual.size.width] == packed["size"]


def random_boxes(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    corners = np.sort(rng.integers(0, 60, (count, 2, 2)), axis=1).reshape(count, 4)
    return corners, rng.integers(0, 20, count) / np.float32(20)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_suppression_matches_torchvision(seed: int, count: int, threshold: float) -> None:
    boxes, scores = random_boxes(np.random.default_rng(seed), count)
    expected = torchvision_shim.batched_nms(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(scores.astype(np.float32)),
        torch.zeros(count),
        threshold,
    )

    actual = nms.nms(boxes, scores, threshold)

    assert actual.tolist() == expected.tolist()

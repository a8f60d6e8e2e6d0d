from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samserve.core import geometry, mask_formats, masks
from samserve.core.upsampling import BoxedLogits, Upsampling, upscale_logits
from samserve.types import FloatArray, MaskFormat, Size

from tests.core import logits as maps
from tests.support.examples import examples

IMAGES = [
    Size(1080, 1920),
    Size(300, 451),
    Size(640, 427),
    Size(1411, 1411),
    Size(240, 320),
    Size(1500, 2250),
    Size(7, 1200),
    Size(1200, 3),
    Size(1, 1),
]

LEVELS = {"level": 0.0, "offset": 1.0}
upsampling_between = partial(Upsampling.between, low_res_side=256)


def upsampling_for(image: Size) -> tuple[Size, Upsampling]:
    resized = geometry.resize_longest_side(image, 1024)
    return resized, upsampling_between(resized, image, model_side=1024)


def reference_summary(logits: FloatArray, level: float, offset: float) -> masks.MaskSummary:
    mask, inner, outer = (logits > bound for bound in (level, level + offset, level - offset))
    stability = inner.sum() / outer.sum() if outer.any() else 0.0
    return masks.MaskSummary(int(mask.sum()), masks.mask_to_box(mask), float(stability))


def assert_bit_identical(
    low_res: FloatArray, image: Size, level: float = 0, offset: float = 1
) -> None:
    _, upsampling = upsampling_for(image)
    upsampled = upscale_logits(low_res, upsampling)

    summary = masks.summarize(low_res, upsampling, level=level, offset=offset)
    mask = masks.binary_mask(low_res, upsampling, level=level)

    assert repr(reference_summary(upsampled, level, offset)) == repr(summary)
    assert np.array_equal(upsampled > level, mask)
    traced = masks.trace(low_res, upsampling, level=level, offset=offset)
    for mask_format in set(MaskFormat) - {MaskFormat.POLYGONS}:  # see test_polygons
        expected = mask_formats.encode(mask, mask_format)
        assert mask_formats.encode(traced, mask_format) == expected


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_summary_is_bit_identical_to_full_upsampling(image: Size) -> None:
    resized = geometry.resize_longest_side(image, 1024)
    for low_res in maps.blobs(3, 6, resized):
        assert_bit_identical(low_res, image)


@pytest.mark.parametrize("name", list(maps.difficult()))
@pytest.mark.parametrize("image", [Size(300, 451), Size(1411, 1411)], ids=str)
def test_summary_of_difficult_maps_is_bit_identical_to_full_upsampling(
    name: str, image: Size
) -> None:
    assert_bit_identical(maps.difficult()[name], image)


@examples(100)
@given(
    hnp.arrays(np.float32, (32, 32), elements=st.floats(-3, 3, width=32)),
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([-1.0, 0.0, 0.5]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_summary_of_any_map_is_bit_identical_to_full_upsampling(
    coarse: FloatArray, height: int, width: int, level: float, offset: float
) -> None:
    low_res = coarse.repeat(8, axis=0).repeat(8, axis=1)

    assert_bit_identical(low_res, Size(height, width), level, offset)


@pytest.mark.parametrize("value", [-1.0, 0.1, 0.7, 13.3])
def test_rounding_at_the_level_is_bit_identical_to_full_upsampling(value: float) -> None:
    level = float(np.float32(value))  # weights that sum to 1 + 1e-7 lift pixels above it

    for image in (Size(1080, 1920), Size(300, 451)):
        assert_bit_identical(maps.constant(value), image, level, 0.0)


def test_every_pixel_is_a_weighted_mean_of_three_by_three_neighbours() -> None:
    for image in IMAGES:
        _, upsampling = upsampling_for(image)
        for axis in (upsampling.rows, upsampling.columns):
            assert axis.weights.min() >= 0
            assert np.allclose(axis.weights.sum(axis=0), 1, atol=1e-6)
            assert (np.diff(axis.first) >= 0).all()
            assert axis.first.min() >= 0
            assert axis.first.max() <= 256 - 3


def test_padding_of_the_model_frame_is_cropped() -> None:
    low_res = maps.constant(-5)
    low_res[200:] = 5  # below an image that fills 576 of 1024 rows
    image = Size(1080, 1920)
    _, upsampling = upsampling_for(image)

    mask = masks.binary_mask(low_res, upsampling, level=0)

    assert not mask.any()
    assert (upscale_logits(low_res, upsampling) == -5).all()


def test_map_at_the_threshold_is_an_empty_mask() -> None:
    _, upsampling = upsampling_for(Size(300, 451))

    summary = masks.summarize(maps.constant(0), upsampling, **LEVELS)

    assert summary.area == 0
    assert summary.box_xyxy == (0, 0, 0, 0)


def test_stability_of_an_empty_mask_is_zero() -> None:
    _, upsampling = upsampling_for(Size(300, 451))

    stability = masks.summarize(maps.constant(-8), upsampling, **LEVELS).stability

    assert stability == 0


def test_upsampling_goes_through_the_model_frame() -> None:
    image = Size(1080, 1920)
    _, upsampling = upsampling_for(image)
    direct = upsampling_between(Size(144, 256), image, model_side=256)
    low_res = maps.difficult()["noise"]

    mask = masks.binary_mask(low_res, upsampling, level=0)

    assert np.count_nonzero(mask != masks.binary_mask(low_res, direct, level=0)) > 1000


def test_half_precision_logits_are_cast_before_interpolation() -> None:
    resized, upsampling = upsampling_for(Size(300, 451))
    (low_res,) = maps.blobs(5, 1, resized)
    half: Any = low_res.astype(np.float16)

    summary = masks.summarize(half, upsampling, **LEVELS)

    assert summary == masks.summarize(half.astype(np.float32), upsampling, **LEVELS)
    assert upscale_logits(half, upsampling).dtype == np.float32


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_logits_inside_the_box_give_the_same_mask(image: Size) -> None:
    resized, upsampling = upsampling_for(image)
    for low_res in [*maps.blobs(5, 6, resized), *maps.difficult().values()]:
        for level in (0.0, 1.5):
            traced = masks.trace(low_res, upsampling, level=level)
            boxed = BoxedLogits.of(low_res, upsampling, traced.summary().box_xyxy)

            again = masks.trace(boxed.low_res(), upsampling, level=level)

            assert np.array_equal(traced.runs(), again.runs())
            assert boxed.nbytes <= low_res.nbytes


def test_logits_inside_a_small_box_use_little_memory() -> None:
    _, upsampling = upsampling_for(Size(1200, 1800))
    low_res = maps.constant(-5)
    low_res[40:45, 60:70] = 5

    box = masks.summarize(low_res, upsampling, **LEVELS).box_xyxy

    assert BoxedLogits.of(low_res, upsampling, box).nbytes < 1000

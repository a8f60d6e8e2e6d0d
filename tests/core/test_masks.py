from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samserve.core import geometry, masks
from samserve.types import FloatArray, Size

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
between = partial(masks.Upsampling.between, low_res_side=256)


def steps_for(image: Size) -> tuple[Size, masks.Upsampling]:
    resized = geometry.resize_longest_side(image, 1024)
    return resized, between(resized, image, model_side=1024)


def plain_summary(logits: FloatArray, level: float, offset: float) -> masks.MaskSummary:
    mask, inner, outer = (logits > bound for bound in (level, level + offset, level - offset))
    stability = inner.sum() / outer.sum() if outer.any() else 0.0
    return masks.MaskSummary(int(mask.sum()), masks.mask_to_box(mask), float(stability))


def assert_same_bits(low_res: FloatArray, image: Size, level: float = 0, offset: float = 1) -> None:
    _, steps = steps_for(image)
    plain = masks.upscale_logits(low_res, steps)

    summary = masks.summarize(low_res, steps, level=level, offset=offset)
    mask = masks.binary_mask(low_res, steps, level=level)

    assert repr(plain_summary(plain, level, offset)) == repr(summary)
    assert np.array_equal(plain > level, mask)


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_summary_has_the_bits_of_the_plain_path(image: Size) -> None:
    resized = geometry.resize_longest_side(image, 1024)
    for low_res in maps.blobs(3, 6, resized):
        assert_same_bits(low_res, image)


@pytest.mark.parametrize("name", list(maps.hard()))
@pytest.mark.parametrize("image", [Size(300, 451), Size(1411, 1411)], ids=str)
def test_summary_of_hard_maps_has_the_bits_of_the_plain_path(name: str, image: Size) -> None:
    assert_same_bits(maps.hard()[name], image)


@examples(100)
@given(
    hnp.arrays(np.float32, (32, 32), elements=st.floats(-3, 3, width=32)),
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([-1.0, 0.0, 0.5]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_summary_of_any_map_has_the_bits_of_the_plain_path(
    coarse: FloatArray, height: int, width: int, level: float, offset: float
) -> None:
    low_res = coarse.repeat(8, axis=0).repeat(8, axis=1)

    assert_same_bits(low_res, Size(height, width), level, offset)


@pytest.mark.parametrize("value", [-1.0, 0.1, 0.7, 13.3])
def test_rounding_at_the_level_has_the_bits_of_the_plain_path(value: float) -> None:
    level = float(np.float32(value))  # weights that sum to 1 + 1e-7 lift pixels above it

    for image in (Size(1080, 1920), Size(300, 451)):
        assert_same_bits(maps.constant(value), image, level, 0.0)


def test_every_pixel_is_a_mean_of_three_by_three_neighbours() -> None:
    for image in IMAGES:
        _, steps = steps_for(image)
        for axis in (steps.rows, steps.columns):
            assert axis.weights.min() >= 0
            assert np.allclose(axis.weights.sum(axis=0), 1, atol=1e-6)
            assert (np.diff(axis.first) >= 0).all()
            assert axis.first.min() >= 0
            assert axis.first.max() <= 256 - 3


def test_padding_of_the_model_frame_is_cut_off() -> None:
    low_res = maps.constant(-5)
    low_res[200:] = 5  # below a picture that fills 576 of 1024 rows
    image = Size(1080, 1920)
    _, steps = steps_for(image)

    mask = masks.binary_mask(low_res, steps, level=0)

    assert not mask.any()
    assert (masks.upscale_logits(low_res, steps) == -5).all()


def test_trap_map_at_the_threshold_is_an_empty_mask() -> None:
    _, steps = steps_for(Size(300, 451))

    summary = masks.summarize(maps.constant(0), steps, **LEVELS)

    assert summary.area == 0
    assert summary.box_xyxy == (0, 0, 0, 0)


def test_stability_of_nothing_is_below_every_threshold() -> None:
    _, steps = steps_for(Size(300, 451))

    stability = masks.summarize(maps.constant(-8), steps, **LEVELS).stability

    assert stability == 0


def test_trap_upsampling_goes_through_the_model_frame() -> None:
    image = Size(1080, 1920)
    _, steps = steps_for(image)
    direct = between(Size(144, 256), image, model_side=256)
    low_res = maps.hard()["noise"]

    mask = masks.binary_mask(low_res, steps, level=0)

    assert np.count_nonzero(mask != masks.binary_mask(low_res, direct, level=0)) > 1000


def test_trap_half_precision_logits_are_cast_before_interpolation() -> None:
    resized, steps = steps_for(Size(300, 451))
    (low_res,) = maps.blobs(5, 1, resized)
    half: Any = low_res.astype(np.float16)

    summary = masks.summarize(half, steps, **LEVELS)

    assert summary == masks.summarize(half.astype(np.float32), steps, **LEVELS)
    assert masks.upscale_logits(half, steps).dtype == np.float32

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from samserve.core import geometry, mask_input, masks
from samserve.core.upsampling import Upsampling
from samserve.types import Size

from tests.support.examples import examples

logits_of = partial(mask_input.binary_mask_to_logits, model_side=1024, low_res_side=256)


def test_half_covered_cell_has_logit_zero() -> None:
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[:, :6] = True  # one and a half cells of 4 pixels

    logits = logits_of(mask, Size(1024, 1024))

    assert logits[0, :3].tolist() == [10, 0, -10]


@examples(100)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_covered_area_is_preserved(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    resized = geometry.resize_longest_side(Size(height, width), 1024)

    logits = logits_of(mask, resized)

    cells = ((logits.astype(np.float64) + 10) / 20).sum()
    coverage = cells * 16 / resized.pixels
    assert abs(coverage - mask.mean()) < 1e-5


def test_upsampled_mask_prompt_matches_the_mask() -> None:
    y, x = np.mgrid[:427, :640]
    mask = np.hypot(y - 200, x - 300) < 120
    image, resized = Size(427, 640), Size(683, 1024)

    logits = logits_of(mask, resized)
    upsampling = Upsampling.between(resized, image, model_side=1024, low_res_side=256)
    upsampled = masks.binary_mask(logits, upsampling, level=0)

    assert (upsampled & mask).sum() / (upsampled | mask).sum() > 0.99

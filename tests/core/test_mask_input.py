import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from samserve.core import geometry, mask_input, masks
from samserve.types import Size

from tests.support.examples import examples


def test_full_mask_is_ten_inside_and_minus_ten_in_the_padding() -> None:
    logits = mask_input.binary_mask_to_logits(np.ones((1080, 1920), bool), Size(576, 1024))

    assert logits.shape == (256, 256)
    assert logits.dtype == np.float32
    assert (logits[:144] == 10).all()
    assert (logits[144:] == -10).all()


def test_empty_mask_is_minus_ten() -> None:
    logits = mask_input.binary_mask_to_logits(np.zeros((300, 451), bool), Size(681, 1024))

    assert (logits == -10).all()


def test_half_covered_cell_is_zero() -> None:
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[:, :6] = True  # one and a half cells of 4 pixels

    logits = mask_input.binary_mask_to_logits(mask, Size(1024, 1024))

    assert logits[0, :3].tolist() == [10, 0, -10]


@examples(100)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_covered_area_is_kept(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    resized = geometry.resize_longest_side(Size(height, width), 1024)

    logits = mask_input.binary_mask_to_logits(mask, resized)

    cells = ((logits.astype(np.float64) + 10) / 20).sum()
    share = cells * 16 / resized.pixels
    assert abs(share - mask.mean()) < 1e-5


def test_mask_comes_back_from_its_logits() -> None:
    y, x = np.mgrid[:427, :640]
    mask = np.hypot(y - 200, x - 300) < 120
    image, resized = Size(427, 640), Size(683, 1024)

    logits = mask_input.binary_mask_to_logits(mask, resized)
    back = masks.threshold(masks.upscale_logits(logits, resized, image))

    assert (back & mask).sum() / (back | mask).sum() > 0.99

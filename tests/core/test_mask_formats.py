from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samserve.core import mask_formats, rle
from samserve.types import (
    BoolArray,
    CocoRle,
    MaskFormat,
    PackedMask,
    Segmentation,
    UncompressedRle,
)

bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def decode(segmentation: Segmentation) -> BoolArray:
    """Decode a mask independently of the code under test, except for COCO run lengths."""
    height, width = segmentation.size.height, segmentation.size.width
    match segmentation:
        case CocoRle():
            return rle.decode(segmentation)
        case UncompressedRle():
            values = np.arange(len(segmentation.counts)) % 2 == 1
            return np.repeat(values, segmentation.counts).reshape(width, height).T
        case PackedMask():
            bits = np.unpackbits(np.frombuffer(segmentation.bits, np.uint8))
            return bits[: height * width].reshape(height, width).astype(np.bool_)


@given(bool_masks, st.sampled_from(MaskFormat))
def test_each_mask_format_has_the_same_pixels(mask: BoolArray, mask_format: MaskFormat) -> None:
    encoded = mask_formats.encode(mask, mask_format)

    assert np.array_equal(decode(encoded), mask)

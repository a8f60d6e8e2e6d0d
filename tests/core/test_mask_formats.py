from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from samserve.core import mask_formats, masks, rle, scanlines
from samserve.types import (
    BoolArray,
    CocoRle,
    MaskFormat,
    NoPixels,
    PackedMask,
    PngMask,
    PolygonOptions,
    Polygons,
    Segmentation,
    Size,
    UncompressedRle,
)

from tests.core import logits
from tests.core.test_masks import upsampling_for

bool_masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


EXACT = PolygonOptions(tolerance=0)


def decode(segmentation: Segmentation) -> BoolArray | None:
    """Decode a mask by other code than that under test, except for run lengths and polygons."""
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
        case PngMask():
            with Image.open(BytesIO(segmentation.file)) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "1", (width, height))
                return np.asarray(image)
        case Polygons():
            rings = [r for each in segmentation.polygons for r in (each.exterior, *each.holes)]
            return scanlines.pixels(
                scanlines.runs_inside(rings, segmentation.size), segmentation.size
            )
        case NoPixels():
            return None


@given(bool_masks, st.sampled_from(MaskFormat))
def test_each_mask_format_has_the_same_pixels(mask: BoolArray, mask_format: MaskFormat) -> None:
    for mask_in_memory in (mask, np.asfortranarray(mask)):
        encoded = mask_formats.encode(mask_in_memory, mask_format, EXACT)

        assert encoded.size == Size(*mask.shape)
        expected = None if mask_format is MaskFormat.BOX else mask
        assert np.array_equal(decode(encoded), expected)


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_formats_of_traced_masks_are_those_of_their_pixels(mask_format: MaskFormat) -> None:
    for size in (Size(48, 64), Size(300, 200)):
        resized, upsampling = upsampling_for(size)
        for low_res in [*logits.blobs(1, 2, resized), *logits.difficult().values()]:
            traced = masks.trace(low_res, upsampling, level=0.0)

            encoded = mask_formats.encode(traced, mask_format, EXACT)

            expected = None if mask_format is MaskFormat.BOX else traced.pixels()
            assert encoded.size == size
            assert np.array_equal(decode(encoded), expected)

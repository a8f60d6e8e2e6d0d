"""Mask formats: encoding of a mask's pixels in the format of the response.

Pixels are encoded once, where they are computed, so a finished mask uses no more memory than its
encoding in the response.  A new format needs a member of `MaskFormat`, a value type and a function
here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samserve.core import rle
from samserve.types import (
    BoolArray,
    MaskFormat,
    PackedMask,
    Segmentation,
    Size,
    UncompressedRle,
)


def encode(mask: BoolArray, mask_format: MaskFormat) -> Segmentation:
    """Encode a mask over the image, bool ``[h, w]``."""
    return _ENCODERS[mask_format](mask)


def _uncompressed(mask: BoolArray) -> UncompressedRle:
    return UncompressedRle(Size(*mask.shape), tuple(rle.uncompressed(rle.encode(mask))))


def _packed(mask: BoolArray) -> PackedMask:
    return PackedMask(Size(*mask.shape), np.packbits(mask).tobytes())


_ENCODERS: dict[MaskFormat, Callable[[BoolArray], Segmentation]] = {
    MaskFormat.COCO_RLE: rle.encode,
    MaskFormat.UNCOMPRESSED_RLE: _uncompressed,
    MaskFormat.BINARY_MASK: _packed,
}

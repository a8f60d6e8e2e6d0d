"""From the pixels of a mask to the format in which it is answered.

Pixels are written once, where they are computed: what is kept of a mask is as large as its part of
the answer.  Another format is a member of `MaskFormat`, a value and a function here.
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


def write(mask: BoolArray, mask_format: MaskFormat) -> Segmentation:
    """Write bool ``[h, w]`` over the image."""
    return _WRITERS[mask_format](mask)


def _uncompressed(mask: BoolArray) -> UncompressedRle:
    return UncompressedRle(Size(*mask.shape), tuple(rle.uncompressed(rle.encode(mask))))


def _packed(mask: BoolArray) -> PackedMask:
    return PackedMask(Size(*mask.shape), np.packbits(mask).tobytes())


_WRITERS: dict[MaskFormat, Callable[[BoolArray], Segmentation]] = {
    MaskFormat.COCO_RLE: rle.encode,
    MaskFormat.UNCOMPRESSED_RLE: _uncompressed,
    MaskFormat.BINARY_MASK: _packed,
}

"""Mask formats: encoding of a mask's pixels in the format of the response.

Pixels are encoded once, where they are computed, so a finished mask uses no more memory than its
encoding in the response.  A new format needs a member of `MaskFormat`, a value type and a function
here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samserve.core import rle
from samserve.core.masks import TracedMask
from samserve.types import (
    BoolArray,
    MaskFormat,
    PackedMask,
    Segmentation,
    Size,
    UncompressedRle,
)


def encode(mask: BoolArray | TracedMask, mask_format: MaskFormat) -> Segmentation:
    """Encode a mask over the image, bool ``[h, w]``, or traced from logits."""
    if isinstance(mask, TracedMask):
        return _TRACED_ENCODERS[mask_format](mask)
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

_TRACED_ENCODERS: dict[MaskFormat, Callable[[TracedMask], Segmentation]] = {
    MaskFormat.COCO_RLE: lambda mask: rle.from_runs(mask.image, mask.runs()),
    MaskFormat.UNCOMPRESSED_RLE: lambda mask: UncompressedRle(
        mask.image, tuple(mask.runs().tolist())
    ),
    MaskFormat.BINARY_MASK: lambda mask: _packed(mask.pixels()),
}

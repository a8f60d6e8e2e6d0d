"""Mask formats: encoding of a mask's pixels in the format of the response.

Pixels are encoded once, where they are computed, so a finished mask uses no more memory than its
encoding in the response.  A new format needs a member of `MaskFormat`, a value type and a function
here.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from samserve.core import masks, polygons, rle, run_lengths
from samserve.core.masks import TracedMask
from samserve.types import (
    BoolArray,
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

_DEFAULTS = PolygonOptions()
_COMPRESS_LEVEL = 3
"""Half the time of zlib's default level, and files of masks that are a few per cent larger."""


def encode(
    mask: BoolArray | TracedMask, mask_format: MaskFormat, options: PolygonOptions = _DEFAULTS
) -> Segmentation:
    """Encode a mask over the image, bool ``[h, w]``, or traced from logits.

    *options* are those of polygons.
    """
    if mask_format is MaskFormat.POLYGONS:
        return _polygons(mask, options)
    if isinstance(mask, TracedMask):
        return _TRACED_ENCODERS[mask_format](mask)
    return _ENCODERS[mask_format](mask)


def _uncompressed(mask: BoolArray) -> UncompressedRle:
    return UncompressedRle(Size(*mask.shape), tuple(rle.uncompressed(rle.encode(mask))))


def _packed(mask: BoolArray) -> PackedMask:
    return PackedMask(Size(*mask.shape), np.packbits(mask).tobytes())


def _png(mask: BoolArray) -> PngMask:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG", compress_level=_COMPRESS_LEVEL)
    return PngMask(Size(*mask.shape), file.getvalue())


def _polygons(mask: BoolArray | TracedMask, options: PolygonOptions) -> Polygons:
    if isinstance(mask, TracedMask):
        box = mask.summary().box_xyxy
        return polygons.outline(mask.pixels(), mask.runs(), box, options)
    return polygons.outline(mask, run_lengths.runs(mask), masks.mask_to_box(mask), options)


_ENCODERS: dict[MaskFormat, Callable[[BoolArray], Segmentation]] = {
    MaskFormat.COCO_RLE: rle.encode,
    MaskFormat.UNCOMPRESSED_RLE: _uncompressed,
    MaskFormat.BINARY_MASK: _packed,
    MaskFormat.PNG: _png,
    MaskFormat.BOX: lambda mask: NoPixels(Size(*mask.shape)),
}

_TRACED_ENCODERS: dict[MaskFormat, Callable[[TracedMask], Segmentation]] = {
    MaskFormat.COCO_RLE: lambda mask: rle.from_runs(mask.image, mask.runs()),
    MaskFormat.UNCOMPRESSED_RLE: lambda mask: UncompressedRle(
        mask.image, tuple(mask.runs().tolist())
    ),
    MaskFormat.BINARY_MASK: lambda mask: _packed(mask.pixels()),
    MaskFormat.PNG: lambda mask: _png(mask.pixels()),
    MaskFormat.BOX: lambda mask: NoPixels(mask.image),
}

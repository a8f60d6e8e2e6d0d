"""Sizes, coordinates and crops: the relations of the image, crop and model frames.

Resized sizes are computed only here, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

from samserve.types import Array, BoolArray, Size, UInt8Array

RgbImage = UInt8Array | Image.Image
"""uint8 RGB ``[h, w, 3]``, or Pillow's image of mode RGB."""
Float64Array = npt.NDArray[np.float64]
CropBox = tuple[int, int, int, int]
"""XYXY in image pixels, ``x_max`` and ``y_max`` exclusive."""


def resize_longest_side(size: Size, target: int) -> Size:
    """Return the size of an image after resizing it to a model frame of side *target*.

    Source: segment-anything utils/transforms.py:93-102.  In float64, because float32 (the
    reference's ONNX path) is one pixel off for some sides above 4096.  A side is never 0;
    in the reference it is, for aspect ratios beyond ``2 * target``.
    """
    scale = target * 1.0 / max(size.height, size.width)
    height, width = (int(side * scale + 0.5) for side in (size.height, size.width))
    return Size(max(height, 1), max(width, 1))


def points_to_model_frame(points_xy: Array, image: Size, resized: Size) -> Float64Array:
    """Transform points from the image (or crop) frame to the model frame.

    *points_xy* is ``[..., 2]``, real, XY; the result is float64 of the same shape.  x and y have
    separate scales, those of the rounded size.  Source: utils/transforms.py:33-45.
    """
    scale = np.array([resized.width / image.width, resized.height / image.height])
    scaled: Float64Array = np.asarray(points_xy, dtype=np.float64) * scale
    return scaled


def size_of(rgb: RgbImage) -> Size:
    """Return the size of an image."""
    if isinstance(rgb, Image.Image):
        return Size(rgb.height, rgb.width)
    return Size(*rgb.shape[:2])


def resize_image(rgb: RgbImage, resized: Size) -> UInt8Array:
    """Resize to uint8 ``[h, w, 3]`` as in the model's training: Pillow bilinear, antialiased.

    Source: segment-anything utils/transforms.py:26-31.  No other resampler returns these bytes.
    """
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(np.ascontiguousarray(rgb))
    resampled = image.resize((resized.width, resized.height), Image.Resampling.BILINEAR)
    return np.asarray(resampled, dtype=np.uint8)


def place_top_left(rgb: UInt8Array, side: int) -> UInt8Array:
    """Pad uint8 ``[h, w, 3]``, h and w at most *side*, with zeros to ``[side, side, 3]``.

    The reference pads after normalising (modeling/sam.py:164-174), so the padding must be
    0 *after* normalisation: the code that normalises this array masks it by the resized size.
    """
    padded = np.zeros((side, side, 3), dtype=np.uint8)
    padded[: rgb.shape[0], : rgb.shape[1]] = rgb
    return padded


def xyxy_to_xywh(box_xyxy: Sequence[float]) -> tuple[float, float, float, float]:
    """Convert a box to corner and extent; for extreme pixels ``w = x_max - x_min``."""
    x_min, y_min, x_max, y_max = map(float, box_xyxy)
    return x_min, y_min, x_max - x_min, y_max - y_min


def crop_boxes(size: Size, n_layers: int, overlap_ratio: float) -> list[tuple[int, CropBox]]:
    """Return the (layer, crop box) pairs of AutoMask: the image, then ``(2**i)**2`` crops of it.

    Source: segment-anything utils/amg.py:200-234, the same boxes in the same order, except that
    crops without a pixel are omitted (an image of very few pixels; the reference fails there).
    """
    boxes: list[tuple[int, CropBox]] = [(0, (0, 0, size.width, size.height))]
    short_side = min(size.height, size.width)
    for layer in range(1, n_layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * short_side * (2 / per_side))
        crop_w = _crop_length(size.width, per_side, overlap)
        crop_h = _crop_length(size.height, per_side, overlap)
        lefts = [(crop_w - overlap) * i for i in range(per_side)]
        tops = [(crop_h - overlap) * i for i in range(per_side)]
        boxes += [
            (layer, (x, y, min(x + crop_w, size.width), min(y + crop_h, size.height)))
            for x, y in product(lefts, tops)
            if x < size.width and y < size.height
        ]
    return boxes


def _crop_length(length: int, crops: int, overlap: int) -> int:
    """Return the side of equal crops, with *overlap*, that cover *length* (amg.py:214-215)."""
    return math.ceil((overlap * (crops - 1) + length) / crops)


def near_crop_edge(
    boxes_xyxy: Array, crop_box: CropBox, image: Size, *, atol: float = 20.0
) -> BoolArray:
    """Return which boxes lie within *atol* pixels of a crop edge that is not an image edge.

    *boxes_xyxy* is ``[n, 4]`` in the crop frame; the result is bool ``[n]``.
    Source: segment-anything utils/amg.py:78-88.
    """
    x, y = crop_box[:2]
    boxes = np.asarray(boxes_xyxy, dtype=np.float32) + np.array([x, y, x, y], dtype=np.float32)
    near_crop = np.abs(boxes - np.array(crop_box, dtype=np.float32)) <= atol
    image_box = np.array([0, 0, image.width, image.height], dtype=np.float32)
    near_image = np.abs(boxes - image_box) <= atol
    return np.asarray((near_crop & ~near_image).any(axis=1), dtype=np.bool_)

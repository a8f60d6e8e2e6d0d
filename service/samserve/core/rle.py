"""COCO run lengths, encoded by pycocotools; see `run_lengths` for the same in numpy alone."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco

from samserve.core.run_lengths import IntArray, decode, uncompressed, validate
from samserve.types import BoolArray, CocoRle, Size

__all__ = ["IntArray", "decode", "encode", "from_runs", "uncompressed", "validate"]


def encode(mask: BoolArray) -> CocoRle:
    """Encode bool ``[h, w]``."""
    packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return CocoRle(Size(*mask.shape), packed["counts"].decode("ascii"))


def from_runs(size: Size, runs: IntArray) -> CocoRle:
    """Encode run lengths, background first, that sum to the size."""
    counts = {"size": [size.height, size.width], "counts": runs.astype(np.uint32)}
    packed = coco.frPyObjects(counts, size.height, size.width)
    return CocoRle(size, packed["counts"].decode("ascii"))

"""Masks of callers as COCO run lengths of the protocol."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.client.results import Mask
from samserve.core import run_lengths
from samserve.v1 import samserve_pb2 as pb

MaskLike = Mask | Mapping[str, Any] | npt.NDArray[np.bool_]
"""A `Mask` with pixels, COCO run lengths ``{"size": [h, w], "counts": str or bytes}``, or bool
``[h, w]``; over the whole image."""


def from_pixels(mask: npt.NDArray[np.bool_]) -> pb.CocoRle:
    """Encode bool ``[h, w]``."""
    coco = run_lengths.encode(mask)
    return _message(coco.size.height, coco.size.width, coco.counts)


def from_mask(mask: MaskLike, name: str) -> pb.CocoRle:
    """Convert a mask, called *name* in errors.

    Raises ``TypeError`` for another type and ``ValueError`` for a value without pixels.
    """
    if isinstance(mask, Mask):
        return _from_result(mask, name)
    if isinstance(mask, Mapping):
        return _from_mapping(mask, name)
    if not isinstance(mask, np.ndarray):
        raise TypeError(
            f"{name} must be a Mask, COCO run lengths or a numpy array, got {type(mask).__name__}"
        )
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(
            f"{name} must be bool [h, w] of the image's size, got {mask.dtype} {list(mask.shape)}"
        )
    return from_pixels(mask)


def _from_result(mask: Mask, name: str) -> pb.CocoRle:
    if mask.counts:
        return _message(*mask.size, mask.counts)
    try:
        return from_pixels(mask.decode())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _from_mapping(mask: Mapping[str, Any], name: str) -> pb.CocoRle:
    try:
        (height, width), counts = mask["size"], mask["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return _message(height, width, text)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f'{name} must be {{"size": [height, width], "counts": text}} with compressed run '
            f"lengths, got {reprlib.repr(mask)}"
        ) from None


def _message(height: int, width: int, counts: str) -> pb.CocoRle:
    return pb.CocoRle(size=pb.ImageSize(height=height, width=width), counts=counts)

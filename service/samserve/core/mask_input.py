"""Binary masks as prompts: conversion to the decoder's low-res logits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from samserve.types import Array, BoolArray, FloatArray, Size

INSIDE_LOGIT = 10.0
OUTSIDE_LOGIT = -10.0

Float64Array = npt.NDArray[np.float64]


def binary_mask_to_logits(
    mask: BoolArray, resized: Size, model_side: int, low_res_side: int
) -> FloatArray:
    """Convert a mask over the whole image to mask-input logits.

    *mask* is bool ``[h, w]`` in the image frame; the result is float32 ``[L, L]`` in
    -10..10.  Each low-res cell is ``20 * coverage - 10``, where *coverage* is the fraction of its
    area that the mask covers; the padding right of and below the image is not covered.  The
    scale of 20 and -10 is SAM 2's for masks as prompts (sam2
    modeling/sam2_base.py, ``_use_mask_as_output``); SAM 1 has no conversion of its own, it only
    accepts logits of an earlier prediction.
    """
    cell = model_side / low_res_side
    cells_y = np.arange(low_res_side + 1) * (cell * mask.shape[0] / resized.height)
    cells_x = np.arange(low_res_side + 1) * (cell * mask.shape[1] / resized.width)
    rows = _sums_between(np.asarray(mask, dtype=np.bool_), cells_y)
    covered = _sums_between(np.ascontiguousarray(rows.T), cells_x).T
    coverage = covered / ((cells_y[1] - cells_y[0]) * (cells_x[1] - cells_x[0]))
    logits = coverage * (INSIDE_LOGIT - OUTSIDE_LOGIT) + OUTSIDE_LOGIT
    clipped: FloatArray = np.clip(logits, OUTSIDE_LOGIT, INSIDE_LOGIT).astype(np.float32)
    return clipped


def _sums_between(values: Array, edges: Float64Array) -> Float64Array:
    """Integrate rows of *values* ``[n, k]``, each one pixel high, between successive edges."""
    edges = np.minimum(edges, len(values))
    whole = edges.astype(np.int64)
    sums = np.stack([values[a:b].sum(axis=0, dtype=np.float64) for a, b in pairwise(whole)])
    partial = (edges - whole)[:, None] * values[np.minimum(whole, len(values) - 1)]
    return np.asarray(sums + partial[1:] - partial[:-1], dtype=np.float64)

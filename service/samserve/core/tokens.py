"""What the decoder is given as sparse prompt, and which of its mask tokens are answered.

Rules of family ``sam1``; SAM 2 orders box corners first and always pads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samserve.types import Array, FloatArray, Label, Multimask

PAD_LABEL = -1.0
BOX_LABELS = (2.0, 3.0)
SINGLE_MASK_TOKEN = 0
MULTIMASK_TOKENS = (1, 2, 3)


def sparse_prompt(
    points_model_xy: Array, labels: Sequence[Label], box_model_xyxy: Array | None
) -> tuple[FloatArray, FloatArray]:
    """Order one object's clicks and box for the decoder: coords ``[N, 2]``, labels ``[N]``.

    Coordinates are in the model frame; the decoder adds its half pixel itself.  Labels are 0
    background, 1 foreground, 2 and 3 the top-left and bottom-right corner, -1 padding::

        points, no box     points, then one (0, 0) labelled -1
        points and box     points, then two corners
        box only           two corners
        neither            nothing (N = 0; a mask prompt)

    Source: segment-anything modeling/prompt_encoder.py:73-101,128-168.  Rounded from float64 to
    float32 after scaling, as predictor.py:140-148 does.
    """
    points = np.asarray(points_model_xy, dtype=np.float64).reshape(-1, 2)
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points have {len(labels)} labels")
    tail, tail_labels = _tail(len(points), box_model_xyxy)
    coords = np.concatenate([points, tail]).astype(np.float32)
    values = [float(label.value) for label in labels] + tail_labels
    return coords, np.array(values, dtype=np.float32)


def _tail(point_count: int, box_model_xyxy: Array | None) -> tuple[Array, list[float]]:
    """What follows the points: the corners of the box, a pad for points alone, else nothing."""
    if box_model_xyxy is not None:
        return np.asarray(box_model_xyxy, dtype=np.float64).reshape(2, 2), list(BOX_LABELS)
    if point_count:
        return np.zeros((1, 2)), [PAD_LABEL]
    return np.empty((0, 2)), []


def grid_prompts(points_model_xy: Array) -> tuple[FloatArray, FloatArray]:
    """Make one prompt of each AutoMask point: coords ``[P, 2, 2]``, labels ``[P, 2]``, float32.

    Each point, float64 in the model frame, is a foreground click followed by the pad.  The
    reference keeps AutoMask's points in float64 until half a pixel is added
    (automatic_mask_generator.py:276-277, prompt_encoder.py:80,214), so rounding them to float32
    first, as for clicks, could differ in the last bit of the sum.  The sum itself is rounded
    here and the half taken off again, which is exact: the decoder's float32 ``coords + 0.5``
    is then the reference's value to the bit (points at or right of 0).
    """
    points = np.asarray(points_model_xy, dtype=np.float64).reshape(-1, 2)
    clicks = (points + 0.5).astype(np.float32) - np.float32(0.5)
    coords = np.stack([clicks, np.zeros_like(clicks)], axis=1)
    labels = np.tile(np.array([Label.FOREGROUND.value, PAD_LABEL], np.float32), (len(points), 1))
    return coords, labels


def answered_tokens(mode: Multimask, sparse_count: int, predicted_iou: FloatArray) -> list[int]:
    """Say which of the four mask tokens answer a prompt, in token order.

    *sparse_count* counts sparse tokens, padding and box corners included; *predicted_iou* is
    float32 ``[4]``::

        ALL                                    1, 2, 3
        SINGLE                                 0
        AUTO, 3 or more (unambiguous)          0
        AUTO, 0 to 2 (a click, a box, a mask)  the best predicted of 1, 2, 3

    AUTO is ``return_single_mask`` of the reference's ONNX export, which adds
    ``(sparse_count - 2.5) * 1000`` to token 0 and takes the maximum (utils/onnx.py:92-105); the
    first wins a tie.  Its formula sends a prompt of a mask alone (count 0) to the best of three.
    """
    if mode is Multimask.ALL:
        return list(MULTIMASK_TOKENS)
    if mode is Multimask.SINGLE or sparse_count >= 3:
        return [SINGLE_MASK_TOKEN]
    return [1 + int(np.argmax(predicted_iou[1:]))]

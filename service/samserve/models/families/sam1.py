"""The rules of Segment Anything, of 2023: SAM, MobileSAM and what was trained like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samserve.core import geometry
from samserve.core.mask_input import binary_mask_to_logits
from samserve.core.masks import Upsampling
from samserve.models.families.base import (
    BOX_LABELS,
    PAD_LABEL,
    AutoMaskDefaults,
    Capabilities,
    Family,
    ImageTransform,
    Sides,
)
from samserve.types import (
    Array,
    BoolArray,
    FloatArray,
    Label,
    ModelInfo,
    Multimask,
    Size,
    UInt8Array,
)


class Sam1(Family):
    """Source of the rules: segment-anything, by file and line."""

    name = "sam1"
    preprocessing = "sam1-1"
    capabilities = Capabilities(points=True, boxes=True, masks=True, automask=True)
    mask_tokens = 4
    multimask_tokens = (1, 2, 3)
    mask_threshold = 0.0
    # automatic_mask_generator.py:36-52 and, for the comparisons, 293 and 302.
    automask = AutoMaskDefaults(
        points_per_side=32,
        points_per_batch=64,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        stability_score_offset=1.0,
        box_nms_thresh=0.7,
        crop_nms_thresh=0.7,
        crop_overlap_ratio=512 / 1500,
        crop_n_points_downscale_factor=1,
    )
    iou_passes = np.greater
    stability_passes = np.greater_equal

    def transform(self, image: Size, sides: Sides) -> ImageTransform:
        """Make the longest side fill the model frame; the aspect ratio stays."""
        resized = geometry.resize_longest_side(image, sides.image_size)
        return ImageTransform(image, resized, sides.image_size, sides.mask_size)

    def place(self, pixels: UInt8Array, transform: ImageTransform) -> UInt8Array:
        """Place the resized image top-left, with zeros right of and below it."""
        resized = geometry.resize_image(pixels, transform.resized)
        return geometry.place_top_left(resized, transform.model_side)

    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        """Put the box after the points, and a pad after points that have no box::

            points, no box     points, then one (0, 0) labelled -1
            points and box     points, then two corners labelled 2 and 3
            box only           two corners
            neither            nothing (N = 0; a mask prompt)

        The decoder adds its half pixel itself.  Rounded from float64 to float32 after scaling, as
        predictor.py:140-148 does.  Source: modeling/prompt_encoder.py:73-101,128-168.
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if len(points) != len(labels):
            raise ValueError(f"{len(points)} points have {len(labels)} labels")
        tail, tail_labels = _tail(len(points), box)
        coords = np.concatenate([points, tail]).astype(np.float32)
        values = [float(label.value) for label in labels] + tail_labels
        return coords, np.array(values, dtype=np.float32)

    def grid_prompts(self, points: Array) -> tuple[FloatArray, FloatArray]:
        """Make a foreground click, followed by the pad, of each point: N = 2.

        The reference keeps AutoMask's points in float64 until half a pixel is added
        (automatic_mask_generator.py:276-277, prompt_encoder.py:80,214), so rounding them to float32
        first, as for clicks, could differ in the last bit of the sum.  The sum itself is rounded
        here and the half taken off again, which is exact: the decoder's float32 ``coords + 0.5``
        is then the reference's value to the bit (points at or right of 0).
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        clicks = (points + 0.5).astype(np.float32) - np.float32(0.5)
        coords = np.stack([clicks, np.zeros_like(clicks)], axis=1)
        labels = np.array([Label.FOREGROUND.value, PAD_LABEL], np.float32)
        return coords, np.tile(labels, (len(points), 1))

    def mask_prompt(self, mask: BoolArray, transform: ImageTransform) -> FloatArray:
        """Convert as SAM 2 does: SAM 1 itself takes logits of an earlier answer only."""
        return binary_mask_to_logits(
            mask, transform.resized, transform.model_side, transform.mask_side
        )

    def answered_tokens(
        self,
        mode: Multimask,
        labels: FloatArray,
        predicted_iou: FloatArray,
        low_res_logits: FloatArray,
        model: ModelInfo,
    ) -> Sequence[int]:
        """Choose by the number of sparse tokens, padding and box corners included::

            ALL                                    1, 2, 3
            SINGLE                                 0
            AUTO, 3 or more (unambiguous)          0
            AUTO, 0 to 2 (a click, a box, a mask)  the best predicted of 1, 2, 3

        AUTO is ``return_single_mask`` of the reference's ONNX export, which adds
        ``(len(labels) - 2.5) * 1000`` to token 0 and takes the maximum (utils/onnx.py:92-105); the
        first wins a tie.  Its formula sends a prompt of a mask alone (no labels) to the best of
        three.
        """
        if mode is Multimask.ALL:
            return self.multimask_tokens
        if mode is Multimask.SINGLE or len(labels) >= 3:
            return (0,)
        first, *_ = self.multimask_tokens
        return (first + int(np.argmax(predicted_iou[first:])),)

    def upsampling(self, transform: ImageTransform) -> Upsampling:
        """Upsample to the model frame, cut to the resized image, then resize to the image.

        Source: modeling/sam.py:133-162.
        """
        return Upsampling.between(
            transform.resized,
            transform.image,
            model_side=transform.model_side,
            low_res_side=transform.mask_side,
        )


def _tail(point_count: int, box: Array | None) -> tuple[Array, list[float]]:
    """What follows the points: the corners of the box, a pad for points alone, else nothing."""
    if box is not None:
        return np.asarray(box, dtype=np.float64).reshape(2, 2), list(BOX_LABELS)
    if point_count:
        return np.zeros((1, 2)), [PAD_LABEL]
    return np.empty((0, 2)), []

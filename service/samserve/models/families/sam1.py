"""The rules of Segment Anything (2023): SAM, MobileSAM and models trained like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samserve.core import geometry
from samserve.core.geometry import RgbImage
from samserve.core.mask_input import binary_mask_to_logits
from samserve.core.upsampling import Upsampling
from samserve.models.families.base import (
    BOX_LABELS,
    PAD_LABEL,
    AutoMaskDefaults,
    Capabilities,
    Family,
    ImageTransform,
    MaskChoice,
    Sides,
)
from samserve.types import (
    Array,
    BoolArray,
    DynamicMultimask,
    FloatArray,
    Label,
    MaskSelection,
    Multimask,
    Size,
    UInt8Array,
)


class Sam1(Family):
    """The rules of SAM 1; sources are files and lines of segment-anything."""

    name = "sam1"
    preprocessing = "sam1-1"
    capabilities = Capabilities(points=True, boxes=True, masks=True, automask=True)
    fills_frame = False
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
        """Scale the longest side to the model frame, keeping the aspect ratio."""
        resized = geometry.resize_longest_side(image, sides.image_size)
        return ImageTransform(image, resized, sides.image_size, sides.mask_size)

    def place(self, pixels: RgbImage, transform: ImageTransform) -> UInt8Array:
        """Place the resized image top-left, padded with zeros on the right and below."""
        resized = geometry.resize_image(pixels, transform.resized)
        return geometry.place_top_left(resized, transform.model_side)

    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        """Append the box to the points, or a padding point to points without a box::

            points, no box     points, then one (0, 0) labelled -1
            points and box     points, then two corners labelled 2 and 3
            box only           two corners
            neither            nothing (N = 0; a mask prompt)

        The decoder adds half a pixel itself.  Coordinates are rounded from float64 to float32 after
        scaling, as in predictor.py:140-148.  Source: modeling/prompt_encoder.py:73-101,128-168.
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if len(points) != len(labels):
            raise ValueError(f"{len(points)} points have {len(labels)} labels")
        tail, tail_labels = _tail(len(points), box)
        coords = np.concatenate([points, tail]).astype(np.float32)
        values = [float(label.value) for label in labels] + tail_labels
        return coords, np.array(values, dtype=np.float32)

    def grid_prompts(self, points: Array) -> tuple[FloatArray, FloatArray]:
        """Build a foreground point prompt, followed by the padding point, from each point: N = 2.

        The reference keeps AutoMask's points in float64 until half a pixel is added
        (automatic_mask_generator.py:276-277, prompt_encoder.py:80,214), so rounding them to float32
        first, as in `prompt`, could differ in the last bit of the sum.  Here the sum itself is
        rounded and the half subtracted again, which is exact: the decoder's float32
        ``coords + 0.5`` then equals the reference's value to the bit (for non-negative
        coordinates).
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        rounded = (points + 0.5).astype(np.float32) - np.float32(0.5)
        coords = np.stack([rounded, np.zeros_like(rounded)], axis=1)
        labels = np.array([Label.FOREGROUND.value, PAD_LABEL], np.float32)
        return coords, np.tile(labels, (len(points), 1))

    def mask_prompt(self, mask: BoolArray, transform: ImageTransform) -> FloatArray:
        """Convert as SAM 2 does: SAM 1 itself only accepts logits of an earlier result."""
        return binary_mask_to_logits(
            mask, transform.resized, transform.model_side, transform.mask_side
        )

    def choose(
        self,
        selection: MaskSelection,
        labels: FloatArray,
        predicted_iou: FloatArray,
        low_res_logits: FloatArray,
        dynamic: DynamicMultimask | None,
    ) -> Sequence[MaskChoice]:
        """Choose by the number of sparse tokens, padding and box corners included::

            ALL                                    1, 2, 3
            SINGLE                                 0
            AUTO, 3 or more (unambiguous)          0
            AUTO, 0 to 2 (a point, a box, a mask)  the one of 1, 2, 3 with the best predicted IoU

        AUTO is ``return_single_mask`` of the reference's ONNX export, which adds
        ``(len(labels) - 2.5) * 1000`` to token 0 and takes the maximum (utils/onnx.py:92-105); the
        first wins a tie.  For a prompt that is only a mask (no labels), that formula selects the
        best of the three.
        """
        if selection.multimask is Multimask.ALL:
            return [MaskChoice.of(token) for token in self.multimask_tokens]
        if selection.multimask is Multimask.SINGLE or len(labels) >= 3:
            return [MaskChoice.of(0)]
        return [MaskChoice.of(self.best_multimask(predicted_iou))]

    def upsampling(self, transform: ImageTransform) -> Upsampling:
        """Upsample to the model frame, crop to the resized image, then resize to the image.

        Source: modeling/sam.py:133-162.
        """
        return Upsampling.between(
            transform.resized,
            transform.image,
            model_side=transform.model_side,
            low_res_side=transform.mask_side,
        )


def _tail(point_count: int, box: Array | None) -> tuple[Array, list[float]]:
    """Return what follows the points: box corners, or a padding point without a box, or nothing."""
    if box is not None:
        return np.asarray(box, dtype=np.float64).reshape(2, 2), list(BOX_LABELS)
    if point_count:
        return np.zeros((1, 2)), [PAD_LABEL]
    return np.empty((0, 2)), []

"""The rules of SAM 2 (2024) for images: SAM 2, SAM 2.1, EdgeTAM and models trained like them."""

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


class Sam2(Family):
    """The rules of SAM 2; sources are files of facebookresearch/sam2, version 1.1.0."""

    name = "sam2"
    preprocessing = "sam2-1"
    capabilities = Capabilities(points=True, boxes=True, masks=True, automask=True)
    fills_frame = True
    mask_tokens = 4
    multimask_tokens = (1, 2, 3)
    object_score = True
    mask_threshold = 0.0
    # sam2_image_predictor.py, `_predict`: only the returned logits, after the masks are made.
    max_returned_logit = 32.0
    # automatic_mask_generator.py: defaults of the constructor, and `_process_batch`.
    automask = AutoMaskDefaults(
        points_per_side=32,
        points_per_batch=64,
        pred_iou_thresh=0.8,
        stability_score_thresh=0.95,
        stability_score_offset=1.0,
        box_nms_thresh=0.7,
        crop_nms_thresh=0.7,
        crop_overlap_ratio=512 / 1500,
        crop_n_points_downscale_factor=1,
    )
    automask_single = Multimask.AUTO
    iou_passes = np.greater
    stability_passes = np.greater_equal

    def transform(self, image: Size, sides: Sides) -> ImageTransform:
        """Stretch the image to the model frame; the aspect ratio is not kept."""
        frame = Size(sides.image_size, sides.image_size)
        return ImageTransform(image, frame, sides.image_size, sides.mask_size)

    def place(self, pixels: RgbImage, transform: ImageTransform) -> UInt8Array:
        """Resize with antialiasing, rounded to 8 bits.

        transformers resizes uint8 pixels too, the original resizes floats, without rounding: the
        pixels differ by at most one grey level from either, from floats by 0.3 on average.
        """
        return geometry.resize_image(pixels, transform.resized)

    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        """Arrange box corners, labelled 2 and 3, then the points, then one padding point.

        The padding point, (0, 0) labelled -1, follows a box too.  A prompt that is only a mask has
        two of them, as in sam2_base.py, ``_forward_sam_heads``, and in transformers; the image
        predictor of the original sends none.  Source: sam2_image_predictor.py, ``_predict``.
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if len(points) != len(labels):
            raise ValueError(f"{len(points)} points have {len(labels)} labels")
        corners = np.empty((0, 2)) if box is None else np.asarray(box, np.float64).reshape(2, 2)
        padding = np.zeros((1 if len(points) or box is not None else 2, 2))
        coords = np.concatenate([corners, points, padding]).astype(np.float32)
        values = [
            *(BOX_LABELS if box is not None else ()),
            *(float(label.value) for label in labels),
            *[PAD_LABEL] * len(padding),
        ]
        return coords, np.array(values, dtype=np.float32)

    def grid_prompts(self, points: Array) -> tuple[FloatArray, FloatArray]:
        """Build a foreground point prompt, followed by the padding point, from each: N = 2."""
        coords = np.asarray(points, dtype=np.float32).reshape(-1, 1, 2)
        labels = np.array([Label.FOREGROUND.value, PAD_LABEL], np.float32)
        padded = np.concatenate([coords, np.zeros_like(coords)], axis=1)
        return padded, np.tile(labels, (len(coords), 1))

    def mask_prompt(self, mask: BoolArray, transform: ImageTransform) -> FloatArray:
        """Convert by area; the scale is that of sam2_base.py, ``_use_mask_as_output``."""
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
        """Choose by the stability of the single mask::

            ALL                             1, 2, 3
            SINGLE                          0
            AUTO, token 0 is stable         0
            AUTO, token 0 is not stable     the one of 1, 2, 3 with the best predicted IoU

        AUTO is ``multimask_output=False`` of the original, whose models set
        ``dynamic_multimask_via_stability``; without that rule it is token 0.  Source:
        modeling/sam/mask_decoder.py, ``_dynamic_multimask_via_stability``.
        """
        if selection.multimask is Multimask.ALL:
            return [MaskChoice.of(token) for token in self.multimask_tokens]
        stable = dynamic is None or is_stable(low_res_logits[0], dynamic)
        if selection.multimask is Multimask.SINGLE or stable:
            return [MaskChoice.of(0)]
        return [MaskChoice.of(self.best_multimask(predicted_iou))]

    def upsampling(self, transform: ImageTransform) -> Upsampling:
        """Upsample from the low-res grid to the image in one step.

        Source: utils/transforms.py, ``postprocess_masks``.
        """
        side = transform.mask_side
        whole = Size(side, side)
        return Upsampling.between(whole, transform.image, model_side=side, low_res_side=side)


def is_stable(low_res: FloatArray, rule: DynamicMultimask) -> bool:
    """Return whether a mask, as low-res logits ``[L, L]``, is stable; an empty one is."""
    inner = np.count_nonzero(low_res > np.float32(rule.delta))
    outer = np.count_nonzero(low_res > np.float32(-rule.delta))
    stability = np.float32(inner) / np.float32(outer) if outer else np.float32(1)
    return bool(stability >= np.float32(rule.thresh))

"""The differences between families of SAM: the port, and its value types.

Everything that depends on the family is here and nowhere else: how an image fills the model frame,
the decoder's inputs for a prompt, which of its masks are returned, and how logits become pixels.  A
family chooses among the building blocks of `samserve.core`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from samserve.core import geometry
from samserve.core.geometry import RgbImage
from samserve.core.upsampling import Upsampling
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

PAD_LABEL = -1.0
BOX_LABELS = (2.0, 3.0)
"""Top-left and bottom-right corner; the decoders of all families use the same labels."""


class Sides(Protocol):
    """Sides of a model's frames in pixels; `ModelInfo` is one implementation."""

    @property
    def image_size(self) -> int:
        """Side of the model frame."""
        ...

    @property
    def mask_size(self) -> int:
        """Side of low-res logits and of mask prompts."""
        ...


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """How pixels of one image (or crop) map to one model's frames.

    ``resized`` is the size of the image inside the model frame, measured from its top-left corner;
    ``mask_side`` is the side of low-res logits and of mask prompts.
    """

    image: Size
    resized: Size
    model_side: int
    mask_side: int

    def points_to_model(self, points_xy: Array) -> Array:
        """Transform points ``[..., 2]``, XY, from the image into the model frame, as float64."""
        return geometry.points_to_model_frame(points_xy, self.image, self.resized)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The prompts and calls that a model supports."""

    points: bool
    boxes: bool
    masks: bool
    automask: bool
    hq_mode: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoMaskDefaults:
    """Defaults for optional parameters of AutoMask; the protocol documents their meaning."""

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int


@dataclass(frozen=True, slots=True)
class MaskChoice:
    """A mask that is returned for a prompt, as a choice among the decoder's T mask tokens.

    Its logits are the sum of those of ``tokens``, its predicted IoU is that of ``iou_token``, and
    ``token_index`` is reported to the client.
    """

    token_index: int
    iou_token: int
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, token: int) -> MaskChoice:
        """Return the unchanged mask of one token."""
        return cls(token, token, (token,))

    def logits(self, low_res_logits: FloatArray) -> FloatArray:
        """Return the mask's logits ``[L, L]`` from those of all tokens, ``[T, L, L]``.

        The logits of one token are a view.
        """
        first, *others = self.tokens
        logits: FloatArray = low_res_logits[first]
        for token in others:
            logits = logits + low_res_logits[token]
        return logits


class Family(ABC):
    """The rules of one family.  Coordinates are float64 in the model frame, XY.

    ``fills_frame`` is whether every image fills the model frame; the encoders of other families
    have an input for its size.  ``mask_tokens`` is the number of masks that the decoder computes
    for a prompt, ``multimask_tokens`` those for an ambiguous prompt.  ``object_score`` is whether
    it also estimates that there is an object.  Pixels with logits above ``mask_threshold`` belong
    to a mask; logits that are returned are limited to ``max_returned_logit``.  ``iou_passes`` and
    ``stability_passes`` compare with the thresholds of AutoMask, ``automask_single`` is its mode
    without multimask output.  ``preprocessing`` is the version of `transform` and `place` together:
    embeddings of different versions are not interchangeable.
    """

    name: ClassVar[str]
    preprocessing: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    fills_frame: ClassVar[bool]
    mask_tokens: ClassVar[int]
    multimask_tokens: ClassVar[tuple[int, ...]]
    object_score: ClassVar[bool] = False
    mask_threshold: ClassVar[float]
    max_returned_logit: ClassVar[float] = np.inf
    automask: ClassVar[AutoMaskDefaults]
    automask_single: ClassVar[Multimask] = Multimask.SINGLE
    iou_passes: ClassVar[np.ufunc]
    stability_passes: ClassVar[np.ufunc]

    @abstractmethod
    def transform(self, image: Size, sides: Sides) -> ImageTransform:
        """Compute the size of an image (or crop) inside the model frame."""

    @abstractmethod
    def place(self, pixels: RgbImage, transform: ImageTransform) -> UInt8Array:
        """Resize an image and place it in the model frame, uint8 ``[S, S, 3]``."""

    @abstractmethod
    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        """Arrange one object's points ``[K, 2]`` and box ``[4]`` (XYXY) for the decoder.

        Returns float32 coordinates ``[N, 2]`` and labels ``[N]``.
        """

    @abstractmethod
    def grid_prompts(self, points: Array) -> tuple[FloatArray, FloatArray]:
        """Build one prompt from each AutoMask point: coords ``[P, N, 2]``, labels ``[P, N]``."""

    @abstractmethod
    def mask_prompt(self, mask: BoolArray, transform: ImageTransform) -> FloatArray:
        """Convert a mask of the image, ``[h, w]``, into mask-input logits, float32 ``[L, L]``."""

    def masks_per_prompt(self, selection: MaskSelection) -> int:
        """Return the largest number of masks that are returned for a prompt."""
        return len(self.multimask_tokens) if selection.multimask is Multimask.ALL else 1

    def candidate_tokens(self, selection: MaskSelection) -> Sequence[int]:
        """Return the tokens whose predicted IoU may be that of a mask of `choose`."""
        if selection.multimask is Multimask.ALL:
            return self.multimask_tokens
        return range(self.mask_tokens)

    @abstractmethod
    def choose(
        self,
        selection: MaskSelection,
        labels: FloatArray,
        predicted_iou: FloatArray,
        low_res_logits: FloatArray,
        dynamic: DynamicMultimask | None,
    ) -> Sequence[MaskChoice]:
        """Return the masks that are returned for a prompt, in the order of their tokens.

        *labels* ``[N]`` are those of `prompt`; *predicted_iou* ``[T]`` and *low_res_logits*
        ``[T, L, L]`` are the decoder's output for it.  *dynamic* is that of the model.
        """

    def best_multimask(self, predicted_iou: FloatArray) -> int:
        """Return the multimask token with the highest predicted IoU ``[T]``, the first of equals.

        NaN is never the highest.
        """
        iou = np.nan_to_num(predicted_iou[list(self.multimask_tokens)], nan=-np.inf)
        return self.multimask_tokens[int(np.argmax(iou))]

    def best_choice(self, predicted_iou: FloatArray) -> MaskChoice:
        """Return the best mask of an ambiguous prompt, for the comparison of exported models."""
        return MaskChoice.of(self.best_multimask(predicted_iou))

    @abstractmethod
    def upsampling(self, transform: ImageTransform) -> Upsampling:
        """Return how low-res logits become pixels of the image (or crop)."""

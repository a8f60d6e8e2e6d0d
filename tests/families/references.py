"""The original predictors and generators of each family, as one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from samserve.models import families
from samserve.models.families.base import Family
from samserve.types import HqMode

from tests.families.toys import Toy
from tests.oracle import meta_sam2, sam_hq
from tests.oracle.onnx_sam2 import stretched


@dataclass(frozen=True)
class PromptCase:
    """One prompt in image pixels: points ``[n,3]`` (x, y, label), box XYXY, logits ``[L,L]``."""

    points: np.ndarray | None = None
    box: np.ndarray | None = None
    logits: np.ndarray | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the originals' ``predict``."""
        return {
            "point_coords": None if self.points is None else self.points[:, :2],
            "point_labels": None if self.points is None else self.points[:, 2].astype(int),
            "box": self.box,
            "mask_input": None if self.logits is None else self.logits[None],
        }


@dataclass(frozen=True)
class Prediction:
    """Logits at the size of the image ``[C,H,W]``, IoUs ``[C]``, low-res logits ``[C,L,L]``.

    ``object_score`` is the logit of families that have it; the originals do not return it.
    """

    logits: np.ndarray
    predicted_iou: np.ndarray
    low_res: np.ndarray
    object_score: float | None = None


class Reference(ABC):
    """The original code on the original networks; embeddings are rounded as samserve does."""

    family: ClassVar[Family]

    @abstractmethod
    def predict(
        self, image: np.ndarray, case: PromptCase, *, multimask: bool, hq_mode: HqMode | None = None
    ) -> Prediction:
        """Predict masks for one prompt as ``predict`` of the original with the same options."""

    @abstractmethod
    def auto_mask(self, image: np.ndarray, **options: Any) -> list[dict[str, Any]]:
        """Return the records of the generator."""


class Sam2Reference(Reference):
    """SAM2ImagePredictor and SAM2AutomaticMaskGenerator."""

    family = families.SAM2

    def __init__(self, toy: Toy) -> None:
        self._sam = toy.model
        self._predictor = self._adapted(meta_sam2.predictor(toy.model))
        self._image: np.ndarray | None = None
        self._scores: list[torch.Tensor] = []
        self._sam.sam_mask_decoder.pred_obj_score_head.register_forward_hook(
            lambda _module, _inputs, score: self._scores.append(score)
        )

    def predict(
        self, image: np.ndarray, case: PromptCase, *, multimask: bool, hq_mode: HqMode | None = None
    ) -> Prediction:
        """See `Reference.predict`."""
        assert hq_mode is None
        if image is not self._image:
            self._predictor.set_image(image)
            self._image = image
        arguments = {**case.arguments, "multimask_output": multimask, "return_logits": True}
        if case.points is None and case.box is None:
            # Two padding points, as in the base model and in transformers; the predictor sends
            # none, and adds one to a point.
            padding = np.zeros((1, 2)), -np.ones(1, int)
            arguments |= {"point_coords": padding[0], "point_labels": padding[1]}
        output = self._predictor.predict(**arguments)
        return Prediction(*output, object_score=float(self._scores[-1]))

    def auto_mask(self, image: np.ndarray, **options: Any) -> list[dict[str, Any]]:
        """See `Reference.auto_mask`."""
        generator = meta_sam2.generator(self._sam, **options)
        self._adapted(generator.predictor)
        records: list[dict[str, Any]] = generator.generate(image)
        return records

    def _adapted(self, predictor: Any) -> Any:
        """Make a predictor resize images as samserve does, and round its features to float16."""
        transforms, set_image = predictor._transforms, predictor.set_image

        def to_tensor(image: np.ndarray) -> torch.Tensor:
            # The resize that follows does not change an image of the right size.
            pixels = torch.from_numpy(stretched(image, self._sam.image_size))
            return pixels.permute(2, 0, 1).float() / 255

        def set_rounded(image: np.ndarray) -> None:
            set_image(image)
            features = predictor._features
            features["image_embed"] = features["image_embed"].half().float()
            features["high_res_feats"] = [
                each.half().float() for each in features["high_res_feats"]
            ]

        transforms.to_tensor, predictor.set_image = to_tensor, set_rounded
        return predictor


class SamHqReference(Reference):
    """SamPredictor and SamAutomaticMaskGenerator of `segment-anything-hq`."""

    family = families.SAM_HQ

    def __init__(self, toy: Toy) -> None:
        self._sam = toy.model
        self._predictor = sam_hq.SamPredictor(toy.model)
        self._image: np.ndarray | None = None

    def predict(
        self, image: np.ndarray, case: PromptCase, *, multimask: bool, hq_mode: HqMode | None = None
    ) -> Prediction:
        """See `Reference.predict`."""
        if image is not self._image:
            self._predictor.set_image(image)
            self._image = image
        output = self._predictor.predict(
            **case.arguments,
            multimask_output=multimask,
            return_logits=True,
            hq_token_only=hq_mode is HqMode.ONLY,
        )
        return Prediction(*output)

    def auto_mask(self, image: np.ndarray, **options: Any) -> list[dict[str, Any]]:
        """See `Reference.auto_mask`."""
        multimask = options.pop("multimask_output", True)
        generator = sam_hq.SamAutomaticMaskGenerator(self._sam, **options)
        records: list[dict[str, Any]] = generator.generate(image, multimask)
        return records


REFERENCES: dict[str, type[Sam2Reference | SamHqReference]] = {
    "sam2": Sam2Reference,
    "edgetam": Sam2Reference,
    "sam_hq": SamHqReference,
}

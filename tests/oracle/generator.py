"""The pipeline of `segment-anything`, AutoMask and single prompts, on a Sam or on ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.oracle.onnx_sam import OnnxSam  # installs the shim before the next import

import segment_anything.automatic_mask_generator as reference  # isort: skip
from segment_anything import SamPredictor  # isort: skip
from segment_anything.modeling import Sam  # isort: skip
from segment_anything.utils import amg  # isort: skip


@dataclass
class FilterCounts:
    """Masks that remain after each step of the generator, over all crops."""

    candidates: int = 0
    after_pred_iou: int = 0
    after_stability: int = 0
    after_crop_edge: int = 0
    after_box_nms: int = 0
    after_crop_nms: int = 0
    after_small_regions: int = 0


@dataclass(frozen=True)
class Prediction:
    """Masks bool ``[C,H,W]``, IoUs float32 ``[C]`` and low-res logits float32 ``[C,256,256]``."""

    masks: np.ndarray
    predicted_iou: np.ndarray
    low_res_logits: np.ndarray


def reference_auto_mask(
    image_rgb: np.ndarray, encoder_path: Path, decoder_path: Path, **generator_kwargs: Any
) -> tuple[list[dict[str, Any]], FilterCounts]:
    """Run the reference generator on exported files; see :func:`auto_mask`."""
    return auto_mask(OnnxSam(encoder_path, decoder_path), image_rgb, **generator_kwargs)


def reference_predict(
    image_rgb: np.ndarray, encoder_path: Path, decoder_path: Path, **prompt: Any
) -> Prediction:
    """Run the reference predictor on exported files; see :func:`predict`."""
    return predict(OnnxSam(encoder_path, decoder_path), image_rgb, **prompt)


def auto_mask(
    sam: Sam | OnnxSam, image_rgb: np.ndarray, **generator_kwargs: Any
) -> tuple[list[dict[str, Any]], FilterCounts]:
    """Return the reference generator's records for an RGB image uint8 ``[H,W,3]``.

    To use embeddings as samserve caches them, pass a Sam through
    ``round_embeddings_to_half``; an ``OnnxSam`` already has such embeddings.
    """
    generator = CountingGenerator(sam, **generator_kwargs)
    records = generator.generate(image_rgb)
    return records, generator.counts


def predict(
    sam: Sam | OnnxSam,
    image_rgb: np.ndarray,
    *,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    box: np.ndarray | None = None,
    mask_input: np.ndarray | None = None,
    multimask_output: bool = True,
) -> Prediction:
    """Predict masks for one prompt in image pixels as the reference predictor does.

    ``points`` ``[n,2]`` with ``labels`` ``[n]``, ``box`` XYXY, ``mask_input`` ``[1,256,256]``.
    """
    predictor = SamPredictor(sam)
    predictor.set_image(image_rgb)
    output = predictor.predict(points, labels, box, mask_input, multimask_output)
    return Prediction(*output)


class CountingGenerator(reference.SamAutomaticMaskGenerator):
    """The reference generator with a count after each step; it computes nothing itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts = FilterCounts()

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = super().generate(image)
        self.counts.after_small_regions = len(records)
        return records

    def _generate_masks(self, image: np.ndarray) -> reference.MaskData:
        data = super()._generate_masks(image)
        self.counts.after_crop_nms = len(data["rles"])
        return data

    def _process_crop(self, *args: Any) -> reference.MaskData:
        data = super()._process_crop(*args)
        self.counts.after_box_nms += len(data["rles"])
        return data

    def _process_batch(self, points: np.ndarray, *args: Any) -> reference.MaskData:
        with (
            mock.patch.object(reference, "calculate_stability_score", self._stability),
            mock.patch.object(reference, "is_box_near_crop_edge", self._near_edge),
        ):
            data = super()._process_batch(points, *args)
        self.counts.candidates += 3 * len(points)
        self.counts.after_crop_edge += len(data["rles"])
        return data

    def _stability(self, masks: Any, *args: Any) -> Any:
        self.counts.after_pred_iou += len(masks)
        return amg.calculate_stability_score(masks, *args)

    def _near_edge(self, boxes: Any, *args: Any) -> Any:
        self.counts.after_stability += len(boxes)
        return amg.is_box_near_crop_edge(boxes, *args)

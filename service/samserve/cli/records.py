"""Results as JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samserve.client import AutoMaskResult, Mask, Prediction


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """Return the record of a prediction: the masks of each prompt, and its object score or None."""
    embedding = prediction.embedding
    return {
        "embedding_id": embedding.id,
        "image_size": list(embedding.image_size),
        "model": embedding.model,
        "results": [
            {
                "object_score": score,
                "masks": [{"token_index": mask.token_index, **_mask(mask)} for mask in masks],
            }
            for masks, score in zip(prediction.results, prediction.object_scores, strict=True)
        ],
        "timings_ms": dict(prediction.timings_ms),
    }


def sa1b_record(result: AutoMaskResult, image: Path) -> dict[str, Any]:
    """Return an AutoMask result in SA-1B's format: an image, and annotations numbered from 1."""
    height, width = result.summary.embedding.image_size
    return {
        "image": {"image_id": 0, "width": width, "height": height, "file_name": image.name},
        "annotations": [
            {
                "id": number,
                **_mask(record.mask),
                "crop_box": list(record.crop_box),
                "point_coords": [list(record.point)],
            }
            for number, record in enumerate(result.records, start=1)
        ],
    }


def _mask(mask: Mask) -> dict[str, Any]:
    return {
        "segmentation": mask.rle,
        "area": mask.area,
        "bbox": list(mask.bbox),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
    }

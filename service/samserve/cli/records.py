"""Results as JSON values."""

from __future__ import annotations

import base64
from typing import Any

from samserve.cli.errors import CommandError
from samserve.client import AutoMaskResult, Mask, MaskFormat, Prediction


def prediction_record(prediction: Prediction, mask_format: MaskFormat) -> dict[str, Any]:
    """Return the record of a prediction: the masks of each prompt, and its object score or None."""
    embedding = prediction.embedding
    return {
        "embedding_id": embedding.id,
        "image_size": list(embedding.image_size),
        "model": embedding.model,
        "results": [
            {
                "object_score": score,
                "masks": [
                    {"token_index": mask.token_index, **_mask(mask, mask_format)} for mask in masks
                ],
            }
            for masks, score in zip(prediction.results, prediction.object_scores, strict=True)
        ],
        "timings_ms": dict(prediction.timings_ms),
    }


def sa1b_record(result: AutoMaskResult, file_name: str, mask_format: MaskFormat) -> dict[str, Any]:
    """Return an AutoMask result in SA-1B's format: an image, and annotations numbered from 1."""
    height, width = result.summary.embedding.image_size
    return {
        "image": {"image_id": 0, "width": width, "height": height, "file_name": file_name},
        "annotations": [
            {
                "id": number,
                **_mask(record.mask, mask_format),
                "crop_box": list(record.crop_box),
                "point_coords": [list(record.point)],
            }
            for number, record in enumerate(result.records, start=1)
        ],
    }


def _mask(mask: Mask, mask_format: MaskFormat) -> dict[str, Any]:
    return {
        "segmentation": _segmentation(mask, mask_format),
        "area": mask.area,
        "bbox": list(mask.bbox),
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
    }


def _segmentation(mask: Mask, mask_format: MaskFormat) -> dict[str, Any] | None:
    """Return the pixels of a mask in the format in which they were received.

    Run lengths are those of COCO; polygons are a GeoJSON geometry in pixels of the image.
    """
    size = list(mask.size)
    received = {
        "uncompressed_rle": mask.runs,
        "binary_mask": mask.bits,
        "png": mask.png,
        "polygons": mask.polygons,
    }
    if not received.get(mask_format, True):
        raise CommandError(f"the server does not support --format {mask_format}")
    match mask_format:
        case "coco_rle":
            return mask.rle
        case "uncompressed_rle":
            return {"size": size, "counts": list(mask.runs)}
        case "binary_mask":
            return {"size": size, "bits": base64.b64encode(mask.bits).decode("ascii")}
        case "png":
            return {"size": size, "png": base64.b64encode(mask.png).decode("ascii")}
        case "polygons":
            polygons = mask.polygons
            assert polygons is not None, "as checked"
            return {"size": size, "iou": polygons.iou, **polygons.geojson}
        case "box":
            return None

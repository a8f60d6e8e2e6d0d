"""The four functions of torchvision that ``segment_anything`` imports.

torchvision itself cannot be imported with the CPU build of torch. Semantics are those of
torchvision 0.2x: PIL's antialiased bilinear resize, and the CPU kernel of greedy NMS (stable
descending order, IoU in float32 compared in double, strictly above the threshold).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import torch
from PIL import Image


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to ``size`` (height, width)."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def to_pil_image(array: np.ndarray) -> Image.Image:
    """Convert uint8 ``[H,W,3]`` or ``[H,W]``."""
    return Image.fromarray(array)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """Return the areas ``[n]`` of XYXY boxes ``[n,4]``."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Return the indices of the boxes that greedy NMS keeps, best score first, per class."""
    areas = box_area(boxes)
    order = torch.sort(scores, descending=True, stable=True).indices
    alive = torch.ones(len(boxes), dtype=torch.bool)
    keep: list[int] = []
    for best in order.tolist():
        if not alive[best]:
            continue
        keep.append(best)
        low = torch.maximum(boxes[best, :2], boxes[:, :2])
        high = torch.minimum(boxes[best, 2:], boxes[:, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        iou = overlap / (areas[best] + areas - overlap)
        alive &= ~((iou.double() > iou_threshold) & (idxs == idxs[best]))
    return torch.tensor(keep, dtype=torch.int64)


def install() -> None:
    """Make ``import torchvision`` find the functions above; call before ``segment_anything``."""
    # It checks once whether torchvision is installed; at that time the answer must be no.
    importlib.import_module("transformers")
    root, ops, boxes, transforms, functional = (
        ModuleType(f"torchvision{suffix}")
        for suffix in ("", ".ops", ".ops.boxes", ".transforms", ".transforms.functional")
    )
    vars(boxes).update(batched_nms=batched_nms, box_area=box_area)
    vars(functional).update(resize=resize, to_pil_image=to_pil_image)
    vars(root).update(ops=ops, transforms=transforms)
    vars(ops).update(boxes=boxes)
    vars(transforms).update(functional=functional)
    sys.modules.update({m.__name__: m for m in (root, ops, boxes, transforms, functional)})

"""The parts of torchvision that ``segment_anything``, ``sam2`` and ``timm`` import.

torchvision itself cannot be imported with the CPU build of torch. Semantics are those of
torchvision 0.2x: PIL's antialiased bilinear resize, for tensors torch's, and the CPU kernel of
greedy NMS (stable descending order, IoU in float32 compared in double, strictly above the
threshold). Of the names that timm only imports, there are placeholders.
"""

from __future__ import annotations

import importlib
import sys
from enum import Enum
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import nn


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


class ToTensor:
    """Convert an image uint8 ``[H,W,3]``, as an array or of PIL, to float32 ``[3,H,W]``, 0 to 1."""

    def __call__(self, image: np.ndarray | Image.Image) -> torch.Tensor:
        pixels = np.array(image)
        assert pixels.dtype == np.uint8
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)


class Resize(nn.Module):
    """Resize a tensor ``[C,H,W]`` of any type to ``size`` (height, width); can be scripted."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Resize, bilinear with antialiasing."""
        return nn.functional.interpolate(
            image.unsqueeze(0),
            size=[self.height, self.width],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        ).squeeze(0)


class Normalize(nn.Module):
    """Normalise a tensor ``[C,H,W]`` by the mean and deviation of its channels."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Subtract the mean and divide by the deviation."""
        return (image - self.mean) / self.std


class InterpolationMode(Enum):
    """The modes that timm names."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class FrozenBatchNorm2d(nn.Module):
    """A placeholder: timm only asks whether a layer is one."""


_DATASETS = ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")
"""Data sets that timm imports and no test uses."""


def install() -> None:
    """Make ``import torchvision`` find the names above; call before imports that need them."""
    if "torchvision" in sys.modules:
        return
    # It checks once whether torchvision is installed; at that time the answer must be no.
    importlib.import_module("transformers")
    datasets, misc, functional, boxes = (
        ModuleType(f"torchvision.{name}")
        for name in ("datasets", "ops.misc", "transforms.functional", "ops.boxes")
    )
    ops, transforms, root = (
        ModuleType(f"torchvision{suffix}") for suffix in (".ops", ".transforms", "")
    )
    vars(boxes).update(batched_nms=batched_nms, box_area=box_area)
    vars(misc).update(FrozenBatchNorm2d=FrozenBatchNorm2d)
    vars(datasets).update({name: type(name, (), {}) for name in _DATASETS})
    vars(functional).update(
        resize=resize, to_pil_image=to_pil_image, InterpolationMode=InterpolationMode
    )
    vars(root).update(ops=ops, transforms=transforms, datasets=datasets)
    vars(ops).update(boxes=boxes, misc=misc)
    vars(transforms).update(
        functional=functional, ToTensor=ToTensor, Resize=Resize, Normalize=Normalize
    )
    modules = (root, ops, boxes, misc, transforms, functional, datasets)
    sys.modules.update({module.__name__: module for module in modules})

"""Batches of scenes and prompts, made on the fly by worker processes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.prompts import PromptSet, sample_prompts
from training.scenes import Scene, generate_scene

PAINTED_SIDE = 512


@dataclass
class Batch:
    """``image`` uint8 ``[B,S,S,3]``, ``size`` int32 ``[B,2]``, PromptSet's fields with a B axis."""

    image: Tensor
    size: Tensor
    coords: Tensor
    labels: Tensor
    masks: Tensor
    valid: Tensor
    target: Tensor
    boxed: Tensor


@dataclass(frozen=True)
class Shape:
    """Size of one step's batch."""

    images: int
    prompts: int
    side: int


class SceneBatches(Dataset[Batch]):
    """Item ``step`` is the batch of that training step: the same for the same seed."""

    def __init__(self, seed: int, shape: Shape, steps: int) -> None:
        self.seed, self.shape, self.steps = seed, shape, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        first = (self.seed * self.steps + step) * self.shape.images
        pairs = [make_pair(first + image, self.shape) for image in range(self.shape.images)]
        return collate([scene for scene, _ in pairs], [prompts for _, prompts in pairs])


def make_pair(seed: int, shape: Shape) -> tuple[Scene, PromptSet]:
    """A scene and its prompts. Above 512 pixels half of the scenes are enlarged small ones."""
    rng = np.random.default_rng((seed, 1))
    enlarge = shape.side > PAINTED_SIDE and rng.random() < 0.6
    scene = generate_scene(seed, PAINTED_SIDE if enlarge else shape.side)
    if enlarge:
        scene = enlarged(scene, shape.side)
    return scene, sample_prompts(scene, shape.prompts, rng)


def enlarged(scene: Scene, side: int) -> Scene:
    """The scene as if a small photograph had been resized for the model."""
    factor = side / scene.image.shape[0]
    levels = [
        cv2.resize(level, (side, side), interpolation=cv2.INTER_NEAREST) for level in scene.levels
    ]
    height, width = (round(extent * factor) for extent in scene.size)
    image = cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_LINEAR)
    return Scene(image, np.stack(levels), (height, width), scene.regions)


def collate(scenes: list[Scene], prompts: list[PromptSet]) -> Batch:
    """Stack arrays into tensors."""
    stacked = {
        item.name: torch.from_numpy(np.stack([getattr(one, item.name) for one in prompts]))
        for item in fields(PromptSet)
    }
    image = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    size = torch.tensor([scene.size for scene in scenes], dtype=torch.int32)
    return Batch(image, size, **stacked)

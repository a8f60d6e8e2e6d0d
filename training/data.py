"""Batches of scenes and prompts, generated on the fly by worker processes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from samserve.tuning.interactive import PromptBatch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from training.prompts import PromptSet, sample_prompts
from training.scenes import LAYERED, TRAINING, Scene, Seed, generate_scene, varied
from training.schedule import Schedule, Shape

ENLARGEMENTS = {384: (1.0, 1.0, 1.5), 512: (1.0, 1.0, 1.6), 1024: (1.0, 1.6, 2.0, 2.67)}
"""Factors by which a painted scene is enlarged, as small photos are for the model."""
SCENE_STREAM, PROMPTS_STREAM, SETTINGS_STREAM = 0, 1, 2
"""Last number of a seed, so that no two generators have the same."""


@dataclass
class Batch:
    """``image`` uint8 ``[B,S,S,3]``, ``size`` int32 ``[B,2]``, ids ``levels`` int32
    ``[B,3,S/4,S/4]``, and prompts.
    """

    image: Tensor
    size: Tensor
    levels: Tensor
    prompts: PromptBatch

    def to(self, device: str) -> Batch:
        """Return the batch on this device."""
        return Batch(
            self.image.to(device),
            self.size.to(device),
            self.levels.to(device),
            self.prompts.to(device),
        )


class SceneBatches(Dataset[Batch]):
    """Dataset whose item ``step`` is the batch of that training step, determined by the seed."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        shape = self.schedule.shape(step)
        pairs = [
            make_pair((self.schedule.seed, step, image), shape) for image in range(shape.images)
        ]
        return collate([scene for scene, _ in pairs], [prompts for _, prompts in pairs])


def batches(schedule: Schedule, steps: range, workers: int) -> DataLoader[Batch]:
    """Return a loader of these steps' batches in order, prefetched by any worker processes."""
    prefetch = 6 if workers else None
    scenes = Subset(SceneBatches(schedule), steps)
    return DataLoader(scenes, None, num_workers=workers, prefetch_factor=prefetch)


def make_pair(seed: Seed, shape: Shape) -> tuple[Scene, PromptSet]:
    """Return a scene and its prompts; some scenes are painted smaller and enlarged."""
    rng = np.random.default_rng((*seed, PROMPTS_STREAM))
    factor = float(rng.choice(ENLARGEMENTS[shape.side])) if shape.side in ENLARGEMENTS else 1.0
    layered = shape.layered > 0 and rng.random() < shape.layered
    settings = LAYERED if layered else TRAINING
    if shape.varied:
        settings = varied(settings, np.random.default_rng((*seed, SETTINGS_STREAM)))
    scene = generate_scene((*seed, SCENE_STREAM), round(shape.side / factor), settings)
    if factor > 1:
        scene = enlarged(scene, shape.side)
    return scene, sample_prompts(scene, shape.prompts, shape.kinds, rng)


def enlarged(scene: Scene, side: int) -> Scene:
    """Return the scene enlarged, as a small photo is for the model."""
    factor = side / scene.image.shape[0]
    levels = [
        cv2.resize(level, (side, side), interpolation=cv2.INTER_NEAREST) for level in scene.levels
    ]
    height, width = (round(extent * factor) for extent in scene.size)
    image = cv2.resize(scene.image, (side, side), interpolation=cv2.INTER_LINEAR)
    return Scene(image, np.stack(levels), (height, width), scene.regions)


def collate(scenes: list[Scene], prompts: list[PromptSet]) -> Batch:
    """Stack arrays into tensors."""
    stacked: dict[str, Any] = {
        item.name: torch.from_numpy(
            np.stack([getattr(prompt_set, item.name) for prompt_set in prompts])
        )
        for item in fields(PromptSet)
    }
    image = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    size = torch.tensor([scene.size for scene in scenes], dtype=torch.int32)
    levels = torch.from_numpy(np.stack([scene.levels[:, 2::4, 2::4] for scene in scenes]))
    return Batch(image, size, levels, PromptBatch(**stacked))

"""Prompts of every kind, decoded by the original and by an exported decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.export.conftest import Pair, View
from tests.oracle.onnx_sam import PromptCollector, without_threshold


@dataclass(frozen=True)
class PromptSet:
    """P prompts on one photo, in model pixels, in the format of the original.

    ``coords`` ``[P,n,2]`` with ``labels`` ``[P,n]``, ``boxes`` ``[P,4]``; ``masks``
    ``[M,1,side,side]`` for the first M prompts.
    """

    coords: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """Logits ``[P,4,side,side]`` and predicted IoUs ``[P,4]`` of all mask tokens."""

    logits: np.ndarray
    iou: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Token of the best of the three multimask outputs, per prompt."""
        return 1 + self.iou[:, 1:].argmax(1)


def decode_original(pair: Pair, view: View, prompts: PromptSet) -> DecoderOutput:
    """Decode with the original prompt encoder and mask decoder, one prompt at a time."""
    encoder, decoder = pair.original.prompt_encoder, pair.original.mask_decoder
    embedding = torch.from_numpy(view.stored).float()
    outputs = []
    for prompt in range(_count(prompts)):
        one = slice(prompt, prompt + 1)
        points = None if prompts.coords is None else (prompts.coords[one], prompts.labels[one])
        boxes = None if prompts.boxes is None else prompts.boxes[one]
        masked = prompts.masks is not None and prompt < len(prompts.masks)
        sparse, dense = encoder(points, boxes, prompts.masks[one] if masked else None)
        outputs.append(decoder.predict_masks(embedding, encoder.get_dense_pe(), sparse, dense))
    logits, iou = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
    return DecoderOutput(logits, iou)


def decode_exported(pair: Pair, views: list[View], sets: list[PromptSet]) -> list[DecoderOutput]:
    """Decode B photos with P prompts each in one call of the exported decoder."""
    collect = PromptCollector(4 * pair.grid)
    tokens = [
        collect((s.coords, s.labels) if s.coords is not None else None, s.boxes, s.masks)
        for s in sets
    ]
    feeds = {
        "image_embedding": np.concatenate([view.stored for view in views]),
        "point_coords": np.concatenate([one.coords for one, _ in tokens]),
        "point_labels": np.concatenate([one.labels for one, _ in tokens]),
        "mask_input": np.concatenate([one.masks for one, _ in tokens]),
        **without_threshold(pair.decoder, len(views)),
    }
    logits, iou = pair.decoder.run(["low_res_logits", "predicted_iou"], feeds)
    return [DecoderOutput(*parts) for parts in zip(logits, iou, strict=True)]


def photo_logits(view: View, output: DecoderOutput, tokens: np.ndarray) -> np.ndarray:
    """Return the logits at the size of the photo ``[P,H,W]``, of one token ``[P]`` per prompt.

    The original upsamples them.
    """
    predictor = view.predictor
    chosen = output.logits[np.arange(len(tokens)), tokens]
    logits: np.ndarray = predictor.model.postprocess_masks(
        torch.from_numpy(chosen).unsqueeze(0), predictor.input_size, predictor.original_size
    )[0].numpy()
    return logits


def prompts_of(kind: str, view: View, seed: int, count: int = 2) -> PromptSet:
    """Return seeded random prompts on the valid part of a photo.

    ``kind`` joins ``points<n>``, ``box`` and ``mask`` with ``+``.
    """
    random = torch.Generator().manual_seed(seed)
    height, width = view.image_size[0].tolist()
    parts = kind.split("+")
    coords = labels = boxes = masks = None
    if parts[0].startswith("points"):
        number = int(parts[0].removeprefix("points"))
        size = torch.tensor([width, height])
        coords = torch.rand(count, number, 2, generator=random) * size
        labels = (torch.rand(count, number, generator=random) < 0.7).float()
        labels[:, 0] = 1
    if "box" in parts:
        corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.5
        extent = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.4
        boxes = torch.cat([corner, corner + 20 + extent], 1)
    if "mask" in parts:
        masks = blobs(count, random, 4 * view.stored.shape[2])
    return PromptSet(coords, labels, boxes, masks)


def blobs(count: int, random: torch.Generator, side: int) -> Tensor:
    """Return circular mask inputs ``[count,1,side,side]``, logits from -20 to 20."""
    centre = torch.rand(count, 1, 1, 1, 2, generator=random) * 256
    axis = torch.arange(side) * 256 / side
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    distance = (torch.stack([columns, rows], 2) - centre).norm(dim=4)
    return (20 - distance / 2).clamp(-20, 20)


def _count(prompts: PromptSet) -> int:
    parts = (prompts.coords, prompts.boxes, prompts.masks)
    return next(len(part) for part in parts if part is not None)

"""Decode prompts with the original SAM 2, for comparisons with an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from samserve.export.families import sam2_names
from torch import Tensor

from tests.export.sam2_pair import MEAN, STD, TENSORS, Arrays, Outcome, Prompt, Sam2Pair
from tests.oracle import meta_sam2


def load_weights(original: Any, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a Sam2Model or EdgeTamModel into the same networks of the original."""
    state = dict(weights)
    rows = state.pop("prompt_encoder.point_embed.weight").split(1)
    theirs = {sam2_names._original(name): value for name, value in state.items()}
    points = enumerate(rows)
    theirs |= {f"sam_prompt_encoder.point_embeddings.{row}.weight": each for row, each in points}
    missing, unexpected = original.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith(("sam_", "image_encoder."))]


def original_embedding(original: Any, pixels: np.ndarray) -> Arrays:
    """Embed images of the model frame, uint8 ``[B,S,S,3]``, with the original."""
    planes = (torch.from_numpy(pixels).double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    embedding = meta_sam2.embed(original, planes.float().permute(0, 3, 1, 2))
    return {name: each.numpy() for name, each in embedding.items()}


def decode_original(
    pair: Sam2Pair, original: Any, prompts: Sequence[Sequence[Prompt]]
) -> list[list[Outcome]]:
    """Decode the stored embeddings with the predictor of the original, one prompt at a time."""
    predictor = meta_sam2.predictor(original)
    predictor._is_image_set = True
    outcomes = []
    for image, row in enumerate(prompts):
        fine, middle, coarse = (
            torch.from_numpy(pair.stored[name][image : image + 1]).float() for name in TENSORS
        )
        predictor._features = {"image_embed": coarse, "high_res_feats": [fine, middle]}
        predictor._orig_hw = [pair.images[image].shape[:2]]
        embedding = dict(zip(TENSORS, (fine, middle, coarse), strict=True))
        found = []
        for prompt in row:
            coords, labels = corners_first(prompt, pair, image)
            mask = None if prompt.mask is None else torch.from_numpy(prompt.mask)[None, None]
            arguments = coords[None], labels[None], mask
            logits, iou, score = meta_sam2.decode(original, embedding, *arguments)
            auto, masks = _selections(predictor, prompt)
            found.append(Outcome(logits[0].numpy(), iou[0].numpy(), float(score), auto, masks))
        outcomes.append(found)
    return outcomes


def corners_first(prompt: Prompt, pair: Sam2Pair, image: int) -> tuple[Tensor, Tensor]:
    """Arrange a prompt as the original predictor does: corners labelled 2 and 3, then points."""
    height, width = pair.images[image].shape[:2]
    points, values = _points(prompt)
    box = [] if prompt.box is None else [prompt.box.reshape(2, 2)]
    coords = np.concatenate([*box, points]) * pair.side / np.array([width, height])
    labels = [*((2, 3) if box else ()), *values]
    return torch.tensor(coords, dtype=torch.float32), torch.tensor(labels, dtype=torch.int32)


def _points(prompt: Prompt) -> tuple[np.ndarray, list[int]]:
    """Return the points of a prompt, and one that is none if it is only a mask.

    As ``_forward_sam_heads`` does: the predictor would send no point at all.
    """
    if not prompt.labels and prompt.box is None:
        return np.zeros((1, 2)), [-1]
    return prompt.points, [int(label.value) for label in prompt.labels]


def _selections(predictor: Any, prompt: Prompt) -> tuple[int, np.ndarray]:
    """Return the token of AUTO, and the masks of every selection at the size of the image."""
    points, labels = _points(prompt)
    given = {
        "point_coords": points if labels else None,
        "point_labels": labels or None,
        "box": prompt.box,
        "mask_input": None if prompt.mask is None else prompt.mask[None],
    }
    decoder = predictor.model.sam_mask_decoder
    decoder.dynamic_multimask_via_stability = False
    single, _, low_res = predictor.predict(**given, multimask_output=False)
    decoder.dynamic_multimask_via_stability = True
    every, _, others = predictor.predict(**given, multimask_output=True)
    auto, _, chosen = predictor.predict(**given, multimask_output=False)
    tokens = np.concatenate([low_res, others])
    (token,) = np.flatnonzero((tokens == chosen).all((1, 2))).tolist()
    return token, np.concatenate([single, every, auto]) > 0

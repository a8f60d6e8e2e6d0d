"""SAM of the transformers library: its checkpoint directories and its own forward pass.

The library is imported on first use: the import takes seconds in every process that collects tests.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tests.oracle.sam import PATCH, SamSize

if TYPE_CHECKING:
    from transformers import SamModel


def model(size: SamSize, mlp_dim: int) -> SamModel:
    """Build a SamModel of a size with random weights."""
    library = importlib.import_module("transformers")
    frame = PATCH * size.grid
    vision = library.SamVisionConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        global_attn_indexes=list(size.global_blocks),
        mlp_dim=mlp_dim,
        window_size=14,
        image_size=frame,
    )
    prompts = {"image_size": frame, "image_embedding_size": size.grid}
    config = library.SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompts)
    sam: SamModel = library.SamModel(config)
    return sam.eval().requires_grad_(False)


def from_original(size: SamSize, state: Mapping[str, Tensor]) -> SamModel:
    """Build a SamModel with the weights of a `segment-anything` checkpoint."""
    mlp_dim = state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0]
    with torch.device("meta"):
        sam = model(size, mlp_dim)
    named = {name: state[original_name(name)] for name in sam.state_dict()}
    sam.load_state_dict(named, strict=True, assign=True)
    return sam.eval().requires_grad_(False)


def save(sam: SamModel, folder: Path) -> Path:
    """Write a directory for ``from_pretrained``."""
    sam.save_pretrained(folder)
    return folder


def embed(sam: SamModel, standardised: Tensor) -> np.ndarray:
    """Embed float32 ``[1,3,side,side]`` to float32 ``[1,256,grid,grid]``."""
    embedding: np.ndarray = sam.get_image_embeddings(standardised).numpy()
    return embedding


def decode(
    sam: SamModel, embedding: np.ndarray, points: Tensor | None, boxes: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits ``[P,3,side,side]`` and predicted IoU ``[P,3]`` of the multimask tokens.

    ``points`` ``[P,n,2]`` foreground points or None, ``boxes`` ``[P,4]`` or None, in model pixels.
    """
    output = sam(
        image_embeddings=torch.from_numpy(embedding),
        input_points=None if points is None else points.unsqueeze(0),
        input_labels=None if points is None else torch.ones(1, *points.shape[:2], dtype=torch.int),
        input_boxes=None if boxes is None else boxes.unsqueeze(0),
        multimask_output=True,
    )
    return output.pred_masks[0].numpy(), output.iou_scores[0].numpy()


def original_name(name: str) -> str:
    """Return the name in `segment-anything` of a tensor of SamModel."""
    for pattern, replacement in _REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    return name


_REPLACEMENTS = (
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^vision_encoder\.layers", "image_encoder.blocks"),
    (r"^vision_encoder", "image_encoder"),
    (r"\.projection\.", ".proj."),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"(mlps\.\d|head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d|head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d|head)\.proj_out", r"\1.layers.2"),
)

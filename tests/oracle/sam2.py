"""SAM 2 of the transformers library: its checkpoint directories and its own forward pass.

The library is imported on first use: the import takes seconds in every process that collects tests.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.oracle.redraw import redraw

if TYPE_CHECKING:
    from transformers import Sam2Model


@dataclass(frozen=True)
class Sam2Size:
    """Sizes of a SAM 2; the model frame has ``16 * grid`` pixels."""

    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: int = 7
    grid: int = 64
    channels: int = 256
    mlp_dim: int = 2048
    delta: float = 0.05


TOY = Sam2Size(16, (1, 2, 3, 2), 1, (4, 4, 7, 4), (4,), grid=8, channels=32, mlp_dim=64)
"""A model frame of 128 pixels; a quarter of a million parameters."""

HIERA_TINY = Sam2Size(96, (1, 2, 7, 2), 1, (8, 4, 14, 7), (5, 7, 9))
HIERA_SMALL = Sam2Size(96, (1, 2, 11, 2), 1, (8, 4, 14, 7), (7, 10, 13))
HIERA_BASE_PLUS = Sam2Size(112, (2, 3, 16, 3), 2, (8, 4, 14, 7), (12, 16, 20), background=14)
HIERA_LARGE = Sam2Size(144, (2, 6, 36, 4), 2, (8, 4, 16, 8), (23, 33, 43))


def config(size: Sam2Size) -> Any:
    """Return the configuration of a size."""
    library = importlib.import_module("transformers")
    widths = [size.width << stage for stage in range(4)]
    side = 16 * size.grid
    backbone = library.Sam2HieraDetConfig(
        image_size=[side, side],
        hidden_size=size.width,
        num_attention_heads=size.heads,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[size.heads << stage for stage in range(4)],
        blocks_per_stage=list(size.blocks),
        window_size_per_stage=list(size.windows),
        global_attention_blocks=list(size.global_blocks),
        window_positional_embedding_background_size=[size.background] * 2,
    )
    vision = library.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[size.grid << level] * 2 for level in (2, 1, 0)],
        fpn_hidden_size=size.channels,
    )
    prompts = {"hidden_size": size.channels, "image_size": side, "patch_size": 16}
    decoder = {
        "hidden_size": size.channels,
        "mlp_dim": size.mlp_dim,
        "iou_head_hidden_dim": size.channels,
        "dynamic_multimask_stability_delta": size.delta,
    }
    return library.Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )


def model(size: Sam2Size = TOY, seed: int = 0) -> Sam2Model:
    """Build a Sam2Model with seeded weights, see `redraw`."""
    library = importlib.import_module("transformers")
    sam: Sam2Model = library.Sam2Model(config(size))
    redraw(sam, seed)
    return sam.eval().requires_grad_(False)


def save(sam: Any, folder: Path) -> Path:
    """Write a directory for ``from_pretrained``."""
    sam.save_pretrained(folder)
    return folder

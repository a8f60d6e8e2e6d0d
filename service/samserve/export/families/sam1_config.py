"""Checks of the configuration of a SAM or SAM-HQ of the transformers library.

Sizes are read from the shapes of tensors; what a configuration has beyond that must be as in a SAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samserve.export.families.library_config import Fields
from samserve.export.sam.config import SamConfig, VitConfig


def check_config(config: Mapping[str, Any], sizes: SamConfig) -> None:
    """Raise `ExportError` for a configuration that differs from the *sizes* of the tensors.

    The library could not load such a checkpoint either, or its masks would differ.
    """
    fields = Fields(config)
    vision, prompts = fields.part("vision_config"), fields.part("prompt_encoder_config")
    decoder = fields.part("mask_decoder_config")
    encoder, side = sizes.encoder, sizes.image_size
    frame = {"image_size": side, "patch_size": encoder.patch_size}
    common = {"layer_norm_eps": 1e-6}
    vision.fixed(**frame, **common, num_channels=3, output_channels=sizes.channels)
    vision.fixed(hidden_act="gelu", qkv_bias=True, use_abs_pos=True, use_rel_pos=True)
    if isinstance(encoder, VitConfig):
        vision.fixed(
            hidden_size=encoder.embed_dim,
            num_hidden_layers=len(encoder.windows),
            num_attention_heads=encoder.heads,
            mlp_dim=encoder.mlp_dim,
        )
        # Of SAM-HQ only.
        decoder.fixed(vit_dim=encoder.embed_dim)
        # Windows as large as the grid do not show which blocks are called global.
        windows = set(encoder.windows) - {sizes.grid}
        if len(windows) == 1:
            whole = [layer for layer, side in enumerate(encoder.windows) if side == sizes.grid]
            vision.fixed(window_size=windows.pop(), global_attn_indexes=whole)
    prompts.fixed(**frame, **common, hidden_size=sizes.channels, image_embedding_size=sizes.grid)
    prompts.fixed(
        mask_input_channels=sizes.mask_channels, num_point_embeddings=4, hidden_act="gelu"
    )
    decoder.fixed(
        **common,
        hidden_size=sizes.channels,
        hidden_act="relu",
        mlp_dim=sizes.decoder_mlp_dim,
        num_hidden_layers=sizes.decoder_depth,
        num_attention_heads=8,
        attention_downsample_rate=2,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=sizes.channels,
    )

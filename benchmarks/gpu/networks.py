"""Networks with seeded weights: SAM and SAM 2.1 of transformers, and the export's own SAM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam
from torch import Tensor, nn

SEED = 22

VITS: dict[str, dict[str, Any]] = {
    "vit_b": {},
    "vit_l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
    },
    "vit_h": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "global_attn_indexes": [7, 15, 23, 31],
    },
    "toy": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "global_attn_indexes": [1],
        "image_size": 128,
        "window_size": 5,
        "output_channels": 64,
        "num_pos_feats": 32,
    },
}
"""Arguments of `SamVisionConfig`, where they are not those of ViT-B."""

HIERAS: dict[str, dict[str, Any]] = {
    "sam2.1_tiny": {"first": 96, "blocks": [1, 2, 7, 2], "all": [5, 7, 9]},
    "sam2.1_small": {"first": 96, "blocks": [1, 2, 11, 2], "all": [7, 10, 13]},
    "sam2.1_base_plus": {"first": 112, "blocks": [2, 3, 16, 3], "all": [12, 16, 20]},
    "sam2.1_large": {"first": 144, "blocks": [2, 6, 36, 4], "all": [23, 33, 43]},
    "sam2.1_toy": {"first": 16, "blocks": [1, 1, 2, 1], "all": [3], "side": 128},
}
"""Widths of the first stage, blocks of all stages, and which blocks have global attention."""

_NAMES = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.%"),
    (r"%$", "positional_encoding_gaussian_matrix"),
    (r"patch_embed\.projection", "patch_embed.proj"),
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
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out", r"\1.layers.2"),
    (r"layer_norm(?=\d|_final)", "norm"),
)
"""Names of transformers to those of the original checkpoints.

`samserve.export.families.sam1_names` has them too, but needs packages that a lent machine lacks; a
test compares both.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same SAM twice: ``plain`` is transformers' `SamModel`, ``ours`` the export's."""

    plain: Any
    ours: Sam


def sam(variant: str, device: str) -> Pair:
    """Build a SAM of `VITS` in float32 with seeded weights, both ways."""
    import transformers  # noqa: PLC0415  (slow)

    sizes = VITS[variant]
    vision = transformers.SamVisionConfig(**sizes)
    width = vision.output_channels
    prompts = {"hidden_size": width, "image_size": vision.image_size, "patch_size": 16}
    prompts["image_embedding_size"] = vision.image_size // 16
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config={
            "hidden_size": width,
            "iou_head_hidden_dim": width,
            # As in the original, which the export follows; the library's default is smaller.
            "layer_norm_eps": 1e-5,
        },
    )
    with torch.device(device):
        plain = transformers.SamModel._from_config(config, attn_implementation="eager")
        seed_weights(plain)
        state = original(plain.state_dict())
        ours = Sam(config_from_state(state))
    ours.load_state_dict(state)
    return Pair(plain, ours.eval().requires_grad_(False))


def hiera(variant: str, device: str, attention: str) -> Any:
    """Build the image encoder of a SAM 2.1 of `HIERAS` in float32 with seeded weights."""
    import transformers  # noqa: PLC0415  (slow)

    config = hiera_config(variant)
    with torch.device(device):
        model = transformers.Sam2VisionModel._from_config(config, attn_implementation=attention)
        seed_weights(model)
    return model


def hiera_config(variant: str) -> Any:
    """Return the `Sam2VisionConfig` of a variant of `HIERAS`."""
    import transformers  # noqa: PLC0415  (slow)

    sizes = HIERAS[variant]
    first, side = sizes["first"], sizes.get("side", 1024)
    widths, large = [first << stage for stage in range(4)], first == 144
    heads = 1 if first in (16, 96) else 2
    background = {112: [14, 14]}.get(first, [7, 7])
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=first,
        num_attention_heads=heads,
        image_size=[side, side],
        embed_dim_per_stage=widths,
        blocks_per_stage=sizes["blocks"],
        num_attention_heads_per_stage=[heads << stage for stage in range(4)],
        window_size_per_stage=[8, 4, 16, 8] if large else [8, 4, 14, 7],
        global_attention_blocks=sizes["all"],
        window_positional_embedding_background_size=background,
    )
    sizes_of_maps = [[side // step, side // step] for step in (4, 8, 16)]
    return transformers.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=sizes_of_maps,
    )


def seed_weights(network: nn.Module) -> None:
    """Draw all weights, such that activations keep their magnitude; in eval mode afterwards."""
    torch.manual_seed(SEED)
    norms = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if "LayerNorm" in type(module).__name__
    }
    with torch.no_grad():
        for name, value in network.named_parameters():
            scale = 0.02 if value.ndim < 2 or "pos" in name else (value[0].numel()) ** -0.5
            value.normal_(0.0, scale)
            if name in norms:
                value.add_(1.0)
    network.eval().requires_grad_(False)


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a `SamModel` under the names of the original checkpoints."""
    result = {}
    for key, value in state.items():
        if key == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        result[name] = value.clone()
    return result


def side_of(variant: str) -> int:
    """Return the side of the images of a variant in pixels."""
    if variant in HIERAS:
        return int(HIERAS[variant].get("side", 1024))
    return int(VITS[variant].get("image_size", 1024))

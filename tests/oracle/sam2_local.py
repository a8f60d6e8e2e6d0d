"""SAM 2 whose masks are regions around their prompts, for runs of AutoMask.

With redrawn weights every mask is noise over the whole image, so that suppression leaves one.  The
decoder of a `segment-anything` model that `tests.oracle.sam` calibrates on the embeddings of the
SAM 2 is moved into it: the decoders differ only in the object score and the high-resolution
features, which stay those of the SAM 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracle.sam import FOREGROUND, Sam, build_sam

FEATURES_SPREAD = 0.4
"""Standard deviation of embeddings: position encodings are waves of amplitude 1."""

DETAIL = 0.05
"""Standard deviation of the high-resolution features, as seen by the upscaling."""

IOU_MEAN, IOU_GAIN = 2.0, 16.0
"""Mean of the predicted IoU before the sigmoid, and the scale of its deviations from it."""

_RENAMES = {
    r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix": (
        "prompt_encoder.shared_embedding.positional_embedding"
    ),
    r"mask_downscaling\.0\.": "mask_embed.conv1.",
    r"mask_downscaling\.1\.": "mask_embed.layer_norm1.",
    r"mask_downscaling\.3\.": "mask_embed.conv2.",
    r"mask_downscaling\.4\.": "mask_embed.layer_norm2.",
    r"mask_downscaling\.6\.": "mask_embed.conv3.",
    r"\.out_proj\.": ".o_proj.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.norm_final_attn\.": ".layer_norm_final_attn.",
    r"\.mlp\.lin1\.": ".mlp.proj_in.",
    r"\.mlp\.lin2\.": ".mlp.proj_out.",
    r"output_upscaling\.0\.": "upscale_conv1.",
    r"output_upscaling\.1\.": "upscale_layer_norm.",
    r"output_upscaling\.3\.": "upscale_conv2.",
    r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.": r"\1.proj_in.",
    r"(mlps\.\d+|iou_prediction_head)\.layers\.1\.": r"\1.layers.0.",
    r"(mlps\.\d+|iou_prediction_head)\.layers\.2\.": r"\1.proj_out.",
}
"""Patterns of names of `segment-anything` and the names of the transformers library."""


class _Embedding(nn.Module):
    """The image encoder of a SAM 2, as that of a Sam; its own weights stay as they are."""

    def __init__(self, model: Any, side: int) -> None:
        super().__init__()
        self.img_size, self.blocks = side, ()
        # `build_sam` scales the last norm of an encoder, and randomises registered parameters.
        self.neck = nn.ModuleList([nn.LayerNorm(1)])
        self._models = [model]

    def forward(self, planes: Tensor) -> Tensor:
        embedding: Tensor = self._models[0].get_image_embeddings(planes)[-1]
        return embedding


class _Size:
    """The size of a Sam with the embeddings of a SAM 2."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._side = model.config.prompt_encoder_config.image_size
        self.grid = self._side // model.config.prompt_encoder_config.patch_size

    def encoder(self) -> nn.Module:
        return _Embedding(self._model, self._side)


def localise(
    model: Any, images: Sequence[np.ndarray], *, foreground: Sequence[float] = FOREGROUND
) -> None:
    """Change the decoder of a Sam2Model or EdgeTamModel so that masks are around their prompts.

    Its width must be 256.  ``images`` are a few RGB images uint8 ``[H,W,3]`` for calibration,
    ``foreground`` is the fraction of them that each token's mask covers.
    """
    with torch.no_grad():
        _scale_features(model)
        sam = build_sam(_Size(model), images, foreground=foreground)  # type: ignore[arg-type]
        _move_decoder(sam, model)
        for token in (model.mask_decoder.obj_score_token,):
            token.weight.mul_(0.4)
        head = model.mask_decoder.iou_prediction_head.proj_out
        head.bias.copy_(IOU_MEAN + IOU_GAIN * (head.bias - 0.88))
        head.weight.mul_(IOU_GAIN)


def _scale_features(model: Any) -> None:
    """Scale the neck, on which all features depend linearly, on an image of noise."""
    side = model.config.prompt_encoder_config.image_size
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    factor = FEATURES_SPREAD / model.get_image_embeddings(noise)[-1].std()
    for conv in model.vision_encoder.neck.convs:
        conv.weight.mul_(factor)
        conv.bias.mul_(factor)
    model.no_memory_embedding.mul_(factor)
    decoder = model.mask_decoder
    for conv, detail in zip(
        (decoder.conv_s0, decoder.conv_s1), model.get_image_embeddings(noise), strict=False
    ):
        conv.weight.mul_(DETAIL / detail.std())
        conv.bias.mul_(DETAIL / detail.std())


def _move_decoder(sam: Sam, model: Any) -> None:
    state = {_renamed(name): value for name, value in _prompts_and_decoder(sam).items()}
    points = [state.pop(f"prompt_encoder.point_embeddings.{kind}.weight") for kind in range(4)]
    state["prompt_encoder.point_embed.weight"] = torch.cat(points)
    positions = state["prompt_encoder.shared_embedding.positional_embedding"]
    state["shared_image_embedding.positional_embedding"] = positions
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected


def _prompts_and_decoder(sam: Sam) -> Mapping[str, Tensor]:
    parts = ("prompt_encoder.", "mask_decoder.")
    return {name: value for name, value in sam.state_dict().items() if name.startswith(parts)}


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES.items():
        name = re.sub(pattern, replacement, name)
    return name

"""`segment-anything-hq` models of any size, with weights that make comparisons meaningful.

The plain part is calibrated as in `tests.oracle.sam`.  The mask of the HQ token is a region around
the prompt too, and depends on the HQ features.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracle import huggingface, mobile, photos
from tests.oracle import sam as plain  # installs the shims before the next import
from tests.oracle.sam import FOREGROUND, MOBILE, PATCH, RADII, SAMPLING, SamSize, Size

with mobile.old_timm():
    from segment_anything_hq import SamAutomaticMaskGenerator, SamPredictor
    from segment_anything_hq.modeling import (
        ImageEncoderViT,
        MaskDecoderHQ,
        PromptEncoder,
        Sam,
        TinyViT,
        TwoWayTransformer,
    )

if TYPE_CHECKING:
    from transformers import SamHQModel

__all__ = ["MaskDecoderHQ", "Sam", "SamAutomaticMaskGenerator", "SamPredictor"]

TOY = SamSize(width=64, depth=3, heads=2, global_blocks=(1, 2), grid=16)
"""A frame of 256 pixels; the first of two global blocks gives the early features."""

TINY_VIT_WIDTH = 160
"""Channels of the second stage of Light HQ-SAM's encoder."""

FEATURES_SHARE = 0.5
"""Spread of the HQ features, relative to that of the features that depend on the prompt."""


def build(
    size: Size = TOY,
    images: Sequence[np.ndarray] | None = None,
    *,
    seed: int = 0,
    foreground: Sequence[float] = FOREGROUND,
) -> Sam:
    """Build a Sam of segment-anything-hq whose masks depend on its prompts.

    See `tests.oracle.sam.build_sam`.  The sum of a plain mask and that of the HQ token covers
    about as much of an image as either.
    """
    images = photos.calibration() if images is None else images
    torch.manual_seed(seed)
    sam = original(size)
    predictor = SamPredictor(sam)
    with torch.no_grad():
        plain.make_informative(predictor, images, foreground)
        _set_hq_head(predictor, images, foreground[0])
    return sam.eval().requires_grad_(False)


def original(size: Size) -> Sam:
    """Build the modules as ``segment_anything_hq.build_sam`` does, in another size."""
    side = PATCH * size.grid
    prompts = PromptEncoder(
        embed_dim=256,
        image_embedding_size=(size.grid, size.grid),
        input_image_size=(side, side),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    encoder, width = _image_encoder(size)
    decoder = MaskDecoderHQ(transformer=transformer, transformer_dim=256, vit_dim=width)
    return Sam(encoder, prompts, decoder).eval()


def hq_features(sam: Sam, embedding: Tensor, early: Tensor) -> Tensor:
    """Return the HQ features ``[B,32,4*grid,4*grid]``, as ``MaskDecoderHQ.forward`` computes them.

    ``embedding`` and ``early`` are the image encoder's output, of the latter only the first.
    """
    decoder = sam.mask_decoder
    features: Tensor = decoder.embedding_encoder(embedding)
    return features + decoder.compress_vit_feat(early.permute(0, 3, 1, 2))


def round_embeddings_to_half(sam: Sam) -> Sam:
    """Round embeddings and HQ features to float16, as samserve caches them; nothing else.

    The HQ features are those of the embedding before it is rounded.  Make no copies of the result.
    """
    decoder = sam.mask_decoder
    whole = decoder.predict_masks

    def rounded(*, image_embeddings: Tensor, hq_features: Tensor, **prompts: Any) -> Any:
        return whole(
            image_embeddings=image_embeddings.half().float(),
            hq_features=hq_features.half().float(),
            **prompts,
        )

    decoder.predict_masks = rounded
    return sam


def library(size: SamSize, state: Mapping[str, Tensor]) -> SamHQModel:
    """Build a SamHQModel of the transformers library with the weights of a checkpoint."""
    transformers = importlib.import_module("transformers")
    frame = PATCH * size.grid
    vision = {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "global_attn_indexes": list(size.global_blocks),
        "mlp_dim": state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        "window_size": 14,
        "image_size": frame,
    }
    config = transformers.SamHQConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": frame},
        mask_decoder_config={"vit_dim": size.width},
    )
    with torch.device("meta"):
        sam: SamHQModel = transformers.SamHQModel(config)
    named = {name: state[_original_name(name)] for name in sam.state_dict()}
    sam.load_state_dict(named, strict=True, assign=True)
    return sam.eval().requires_grad_(False)


def repair(sam: SamHQModel) -> None:
    """Make the masks of a SamHQModel depend on the output of its decoder's transformer.

    In transformers 5.24.0, `SamHQMaskDecoder.forward` ignores the cells that the transformer
    returns and upscales those that it was called with, transposed; no other SAM of the library
    does.  Here its input is overwritten with its output.
    """
    transformer = sam.mask_decoder.transformer
    whole = transformer.forward

    def overwriting(*, image_embeddings: Tensor, **others: Any) -> Any:
        tokens, cells, *rest = whole(image_embeddings=image_embeddings, **others)
        planes = cells[:, 0].transpose(1, 2).reshape(image_embeddings.shape)
        image_embeddings.copy_(planes.transpose(2, 3))
        return tokens, cells, *rest

    transformer.forward = overwriting


def save(sam: SamHQModel, folder: Path) -> Path:
    """Write a directory for ``from_pretrained``."""
    sam.save_pretrained(folder)
    return folder


def _original_name(name: str) -> str:
    for pattern, replacement in _REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    return huggingface.original_name(name)


_REPLACEMENTS = (
    (r"hq_token", "hf_token"),
    (r"hq_mask_mlp\.proj_in", "hf_mlp.layers.0"),
    (r"hq_mask_mlp\.layers\.0", "hf_mlp.layers.1"),
    (r"hq_mask_mlp\.proj_out", "hf_mlp.layers.2"),
    (r"compress_vit_conv1", "compress_vit_feat.0"),
    (r"compress_vit_norm", "compress_vit_feat.1"),
    (r"compress_vit_conv2", "compress_vit_feat.3"),
    (r"decoder\.encoder_conv1", "decoder.embedding_encoder.0"),
    (r"decoder\.encoder_norm", "decoder.embedding_encoder.1"),
    (r"decoder\.encoder_conv2", "decoder.embedding_encoder.3"),
    (r"decoder\.mask_conv1", "decoder.embedding_maskfeature.0"),
    (r"decoder\.mask_norm", "decoder.embedding_maskfeature.1"),
    (r"decoder\.mask_conv2", "decoder.embedding_maskfeature.3"),
)


def _image_encoder(size: Size) -> tuple[nn.Module, int]:
    """Return an image encoder, and the channels of its early features."""
    if size is MOBILE:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints learning rates
            return TinyViT(**mobile.SETTINGS), TINY_VIT_WIDTH
    assert isinstance(size, SamSize)
    encoder = ImageEncoderViT(
        depth=size.depth,
        embed_dim=size.width,
        img_size=PATCH * size.grid,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=size.heads,
        use_rel_pos=True,
        global_attn_indexes=size.global_blocks,
        window_size=14,
    )
    return encoder, size.width


def _set_hq_head(predictor: SamPredictor, images: Sequence[np.ndarray], fraction: float) -> None:
    """Solve the HQ token's head, as `tests.oracle.sam` does those of the other mask tokens."""
    sam = predictor.model
    decoder, grid = sam.mask_decoder, sam.prompt_encoder.image_embedding_size[0]
    # Channel 0 is a constant, as in the plain part.
    for last in (decoder.compress_vit_feat[-1], decoder.embedding_encoder[-1]):
        last.weight[:, 0], last.bias[0] = 0, 0
    decoder.embedding_maskfeature[-1].weight[0] = 0
    decoder.embedding_maskfeature[-1].bias[0] = 1
    points, tokens, prompted, common = [], [], [], []
    for image in images:
        position, token, cells = plain.point_outputs(predictor, image)
        planes = cells.transpose(1, 2).reshape(-1, 256, grid, grid)
        prompted.append(decoder.embedding_maskfeature(decoder.output_upscaling(planes)))
        features = hq_features(sam, predictor.features, predictor.interm_features[0])
        common.append(features.expand_as(prompted[-1]))
        points.append(position / (PATCH * grid))
        tokens.append(token[:, 5])
    factor = FEATURES_SHARE * torch.cat(prompted)[:, 1:].std() / torch.cat(common)[:, 1:].std()
    for last in (decoder.compress_vit_feat[-1], decoder.embedding_encoder[-1]):
        last.weight.mul_(factor)
        last.bias.mul_(factor)
    fine = torch.cat(prompted) + factor * torch.cat(common)
    fine = fine.flatten(2).transpose(1, 2)[:, ::SAMPLING]
    bumps = plain.bumps(torch.cat(points), 4 * grid, RADII[0])[:, ::SAMPLING]
    mix = plain.solve(fine, bumps)
    plain.set_mask_head(decoder.hf_mlp, mix, torch.cat(tokens), fine, fraction)

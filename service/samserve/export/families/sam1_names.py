"""Naming schemes of SAM 1 checkpoints, and the conversion to the original names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.families.base import Naming
from samserve.export.pixels import PIXEL_MEAN, PIXEL_STD
from samserve.export.sources.files import State, shown

PREFIXES: Mapping[Naming, tuple[str, ...]] = {
    Naming.ORIGINAL: ("image_encoder.blocks.", "image_encoder.layers."),
    Naming.TRANSFORMERS: ("vision_encoder.layers.", "shared_image_embedding."),
}
"""Prefixes of names, some of which every SAM has."""

_NORMALISATION = {"pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}

_UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.")
"""MobileSAM's checkpoint includes the classifier that its encoder was trained with."""

_SHARED = "shared_image_embedding.positional_embedding"
_TIED = "prompt_encoder.shared_embedding.positional_embedding"
"""One tensor with two names in the transformers library, whose versions save either or both."""

_EXACT = {
    _SHARED: "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
}
_MLPS = r"(mask_decoder.(?:output_hypernetworks_mlps.\d+|iou_prediction_head))"
_PATTERNS: Mapping[str, str] = {
    r"vision_encoder.patch_embed.projection": r"image_encoder.patch_embed.proj",
    r"vision_encoder.layers.(\d+).layer_norm([12])": r"image_encoder.blocks.\1.norm\2",
    r"vision_encoder.layers.(\d+).(attn|mlp)([\w.]*)": r"image_encoder.blocks.\1.\2\3",
    r"vision_encoder.neck.conv1": r"image_encoder.neck.0",
    r"vision_encoder.neck.layer_norm1": r"image_encoder.neck.1",
    r"vision_encoder.neck.conv2": r"image_encoder.neck.2",
    r"vision_encoder.neck.layer_norm2": r"image_encoder.neck.3",
    r"prompt_encoder.mask_embed.conv1": r"prompt_encoder.mask_downscaling.0",
    r"prompt_encoder.mask_embed.layer_norm1": r"prompt_encoder.mask_downscaling.1",
    r"prompt_encoder.mask_embed.conv2": r"prompt_encoder.mask_downscaling.3",
    r"prompt_encoder.mask_embed.layer_norm2": r"prompt_encoder.mask_downscaling.4",
    r"prompt_encoder.mask_embed.conv3": r"prompt_encoder.mask_downscaling.6",
    r"prompt_encoder.point_embed.(\d+)": r"prompt_encoder.point_embeddings.\1",
    r"(prompt_encoder.(?:no_mask|not_a_point)_embed)": r"\1",
    r"(mask_decoder.(?:iou_token|mask_tokens))": r"\1",
    r"(mask_decoder.transformer.layers.\d+).layer_norm([1-4])": r"\1.norm\2",
    r"(mask_decoder.transformer.layers.\d+.(?:(?:self|cross)_attn\w*|mlp).\w+)": r"\1",
    r"(mask_decoder.transformer.final_attn_token_to_image.\w+)": r"\1",
    r"mask_decoder.transformer.layer_norm_final_attn": r"mask_decoder.transformer.norm_final_attn",
    r"mask_decoder.upscale_conv1": r"mask_decoder.output_upscaling.0",
    r"mask_decoder.upscale_layer_norm": r"mask_decoder.output_upscaling.1",
    r"mask_decoder.upscale_conv2": r"mask_decoder.output_upscaling.3",
    rf"{_MLPS}.proj_in": r"\1.layers.0",
    rf"{_MLPS}.layers.0": r"\1.layers.1",
    rf"{_MLPS}.proj_out": r"\1.layers.2",
}
"""Patterns of names of the transformers library and the original names, without the last part."""

_RENAMES = [
    (re.compile(pattern.replace(".", r"\.") + r"(?P<last>\.\w+)"), rf"{name}\g<last>")
    for pattern, name in _PATTERNS.items()
]


def original_names(tensors: Mapping[str, Tensor]) -> tuple[Naming, State]:
    """Return the previous naming scheme, and the tensors under the names of original checkpoints.

    Tensors that a SAM does not use are removed.  Raises `ExportError` for other names.
    """
    state = dict(tensors)
    naming = _naming(state)
    if naming is Naming.TRANSFORMERS:
        _untie(state)
        state = {_renamed(key): value for key, value in state.items()}
    _remove_normalisation(state)
    return naming, {key: value for key, value in state.items() if not _UNUSED.match(key)}


def _naming(state: State) -> Naming:
    for naming, starts in PREFIXES.items():
        if any(key.startswith(starts) for key in state):
            return naming
    raise ExportError(f"not a SAM checkpoint: unexpected tensor {shown(next(iter(state), ''))}")


def _untie(state: State) -> None:
    tied = state.pop(_TIED, None)
    if tied is not None and not torch.equal(state.setdefault(_SHARED, tied).float(), tied.float()):
        raise ExportError(f"{_TIED} differs from {_SHARED}, but they must be equal")


def _renamed(key: str) -> str:
    if key in _EXACT:
        return _EXACT[key]
    for pattern, name in _RENAMES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(name)
    raise ExportError(f"not a SAM of the transformers library: unexpected tensor {shown(key)}")


def _remove_normalisation(state: State) -> None:
    """Remove the checkpoint's normalisation constants; those of SAM are part of the served graph.

    Raises `ExportError` if they differ from those of SAM.
    """
    for key, expected in _NORMALISATION.items():
        found = state.pop(key, None)
        if found is None:
            continue
        # Rounded to the stored type, and to float32 if that is wider.
        rounded = torch.tensor(expected, dtype=found.dtype).float()
        if not torch.equal(found.flatten().float(), rounded):
            raise ExportError(f"{key} differs from SAM's, which the exported models use")

"""Whose names a checkpoint's tensors have, and what they are called in the original ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.sam.graphs import PIXEL_MEAN, PIXEL_STD
from samserve.export.sources.files import State, shown


class Naming(StrEnum):
    """Who named the tensors."""

    ORIGINAL = "original"
    TRANSFORMERS = "transformers"


FOREIGN: Mapping[str, str] = {
    r"mask_decoder\.(hf_token|hf_mlp|hq_token|hq_mask_mlp)\.": "SAM-HQ",
    r"(memory_attention|memory_encoder|sam_mask_decoder|image_encoder\.trunk)\.": "SAM 2",
    r"(vision_encoder|detector)\.backbone\.|geometry_encoder\.": "SAM 2 or SAM 3",
    r"(prompt_encoder\.invalid_points|mask_decoder\.final_output_upscaling)": "EfficientSAM",
    r"image_encoder\.backbone\.": "EfficientViT-SAM",
    r"image_encoder\.features\.": "EdgeSAM or RepViT-SAM",
    r"(image_encoder|vision_encoder|mask_decoder)\..*([Aa]dapter|lora_)": "a SAM with adapters",
}
"""Parts of names that only other models have."""

SIGNS: Mapping[Naming, tuple[str, ...]] = {
    Naming.ORIGINAL: ("image_encoder.blocks.", "image_encoder.layers."),
    Naming.TRANSFORMERS: ("vision_encoder.layers.", "shared_image_embedding."),
}
"""How names begin, of which a SAM has some."""

_NORMALISATION = {"pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}

_UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.")
"""MobileSAM keeps the classifier that its encoder was trained with."""

_SHARED = "shared_image_embedding.positional_embedding"
_TIED = "prompt_encoder.shared_embedding.positional_embedding"
"""One tensor with two names in the transformers library, which has saved either or both."""

_WHOLE = {
    _SHARED: "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
}
_MLPS = r"(mask_decoder.(?:output_hypernetworks_mlps.\d+|iou_prediction_head))"
_BEFORE_LAST: Mapping[str, str] = {
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
"""Names of the transformers library and the original ones, some of them but for the last part."""

_RENAMES = [
    (re.compile(pattern.replace(".", r"\.") + r"(?P<last>\.\w+)"), rf"{name}\g<last>")
    for pattern, name in _BEFORE_LAST.items()
]


def original_names(tensors: Mapping[str, Tensor]) -> tuple[Naming, State]:
    """Return the tensors under the names of the original checkpoints, and whose names they had.

    What a SAM does not use is dropped.  Raises `ExportError` for another family of models.
    """
    state = _without_prefix(dict(tensors))
    naming = _naming(state)
    if naming is Naming.TRANSFORMERS:
        _untie(state)
        state = {_renamed(key): value for key, value in state.items()}
    _drop_normalisation(state)
    return naming, {key: value for key, value in state.items() if not _UNUSED.match(key)}


def _naming(state: State) -> Naming:
    for pattern, family in FOREIGN.items():
        sign = next((key for key in state if re.search(pattern, key)), None)
        if sign:
            raise ExportError(
                f"this looks like {family} ({shown(sign)}); only SAM 1 and MobileSAM are read"
            )
    for naming, starts in SIGNS.items():
        if any(key.startswith(starts) for key in state):
            return naming
    some = ", ".join(list(state)[:3])
    raise ExportError(f"this is no SAM: its {len(state)} tensors are called {shown(some)} ...")


def _without_prefix(state: State) -> State:
    """Undo what data-parallel training puts before every name."""
    prefix = "module."
    if state and all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _untie(state: State) -> None:
    tied = state.pop(_TIED, None)
    if tied is not None and not torch.equal(state.setdefault(_SHARED, tied).float(), tied.float()):
        raise ExportError(f"{_TIED} differs from {_SHARED}, though they are one")


def _renamed(key: str) -> str:
    if key in _WHOLE:
        return _WHOLE[key]
    for pattern, name in _RENAMES:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(name)
    raise ExportError(f"no SAM of the transformers library: {shown(key)} does not belong there")


def _drop_normalisation(state: State) -> None:
    """Drop a checkpoint's own normalisation, if it is SAM's, which is part of the served graph."""
    for key, expected in _NORMALISATION.items():
        found = state.pop(key, None)
        if found is None:
            continue
        # Rounded as it is stored, and once more where it is wider than the graph's.
        rounded = torch.tensor(expected, dtype=found.dtype).float()
        if not torch.equal(found.flatten().float(), rounded):
            raise ExportError(f"{key} differs from SAM's, which the served models apply")

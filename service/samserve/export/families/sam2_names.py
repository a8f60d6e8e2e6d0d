"""The tensors of SAM 2 and EdgeTAM for images, under their names in the transformers library.

The names of facebookresearch/sam2 are converted.  It has one matrix of the position encoding where
the library has two, for points and for the image; and four tensors of one row for points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from samserve.export.families.base import Naming, check_tensors
from samserve.export.sources.files import State

_VIDEO_ONLY = {
    Naming.ORIGINAL: (
        r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj"
        r"|spatial_perceiver)\.|(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
    ),
    Naming.TRANSFORMERS: (
        r"(memory_attention|memory_encoder|mask_downsample|object_pointer_proj|spatial_perceiver"
        r"|temporal_positional_encoding_projection_layer)\.|(memory_temporal_positional_encoding"
        r"|no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter)$"
    ),
}
"""Patterns of tensors that only videos need."""

_OCCLUSION = ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter")
"""A tensor for videos that SAM 2.1 has and SAM 2 has not."""

_POINTS = "prompt_encoder.point_embed.weight"
_POINT = "sam_prompt_encoder.point_embeddings.{}.weight"
_DENSE_POSITION = "shared_image_embedding.positional_embedding"
_POSITION = "prompt_encoder.shared_embedding.positional_embedding"

_EXACT = {
    "no_memory_embedding": "no_mem_embed",
    "vision_encoder.backbone.pos_embed": "image_encoder.trunk.pos_embed",
    "vision_encoder.backbone.pos_embed_window": "image_encoder.trunk.pos_embed_window",
    _POSITION: "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    _DENSE_POSITION: "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
}

_BLOCK, _ITS_BLOCK = r"vision_encoder.backbone.blocks.(\d+)", r"image_encoder.trunk.blocks.\1"
_LAYER = r"mask_decoder.transformer.layers.(\d+)"
_ITS_LAYER = r"sam_mask_decoder.transformer.layers.\1"
_ATTENTION = r"mask_decoder.transformer.((?:layers.\d+.)?\w*attn\w*)"
_MLPS = r"mask_decoder.(output_hypernetworks_mlps.\d+|iou_prediction_head|pred_obj_score_head)"
_PATTERNS: Mapping[str, str] = {
    r"vision_encoder.backbone.patch_embed.projection": r"image_encoder.trunk.patch_embed.proj",
    rf"{_BLOCK}.layer_norm([12])": rf"{_ITS_BLOCK}.norm\2",
    rf"{_BLOCK}.(attn.qkv|attn.proj|proj)": rf"{_ITS_BLOCK}.\2",
    rf"{_BLOCK}.mlp.proj_in": rf"{_ITS_BLOCK}.mlp.layers.0",
    rf"{_BLOCK}.mlp.proj_out": rf"{_ITS_BLOCK}.mlp.layers.1",
    r"vision_encoder.backbone.timm_model.([\w.]+)": r"image_encoder.trunk.body.\1",
    r"vision_encoder.neck.convs.(\d+)": r"image_encoder.neck.convs.\1.conv",
    r"prompt_encoder.mask_embed.conv1": r"sam_prompt_encoder.mask_downscaling.0",
    r"prompt_encoder.mask_embed.layer_norm1": r"sam_prompt_encoder.mask_downscaling.1",
    r"prompt_encoder.mask_embed.conv2": r"sam_prompt_encoder.mask_downscaling.3",
    r"prompt_encoder.mask_embed.layer_norm2": r"sam_prompt_encoder.mask_downscaling.4",
    r"prompt_encoder.mask_embed.conv3": r"sam_prompt_encoder.mask_downscaling.6",
    r"prompt_encoder.(no_mask_embed|not_a_point_embed)": r"sam_prompt_encoder.\1",
    r"mask_decoder.(\w+_tokens?|conv_s[01])": r"sam_mask_decoder.\1",
    rf"{_LAYER}.layer_norm([1-4])": rf"{_ITS_LAYER}.norm\2",
    rf"{_LAYER}.mlp.proj_in": rf"{_ITS_LAYER}.mlp.layers.0",
    rf"{_LAYER}.mlp.proj_out": rf"{_ITS_LAYER}.mlp.layers.1",
    rf"{_ATTENTION}.([qkv]_proj)": r"sam_mask_decoder.transformer.\1.\2",
    rf"{_ATTENTION}.o_proj": r"sam_mask_decoder.transformer.\1.out_proj",
    r"mask_decoder.transformer.layer_norm_final_attn": (
        r"sam_mask_decoder.transformer.norm_final_attn"
    ),
    r"mask_decoder.upscale_conv1": r"sam_mask_decoder.output_upscaling.0",
    r"mask_decoder.upscale_layer_norm": r"sam_mask_decoder.output_upscaling.1",
    r"mask_decoder.upscale_conv2": r"sam_mask_decoder.output_upscaling.3",
    rf"{_MLPS}.proj_in": r"sam_mask_decoder.\1.layers.0",
    rf"{_MLPS}.layers.0": r"sam_mask_decoder.\1.layers.1",
    rf"{_MLPS}.proj_out": r"sam_mask_decoder.\1.layers.2",
}
"""Patterns of names of the library and the original names, both without the last part."""

_RENAMES = [
    (re.compile(pattern.replace(".", r"\.") + r"(?P<last>\.\w+)"), rf"{name}\g<last>")
    for pattern, name in _PATTERNS.items()
]


def naming_of(tensors: Mapping[str, Tensor]) -> Naming:
    """Return the naming scheme of a SAM 2 or EdgeTAM."""
    is_original = any(name.startswith(("image_encoder.", "sam_")) for name in tensors)
    return Naming.ORIGINAL if is_original else Naming.TRANSFORMERS


def trunk_of(tensors: Mapping[str, Tensor]) -> State:
    """Return the tensors of the trunk of the image encoder, under their names inside of it."""
    prefixes = ("image_encoder.trunk.", "vision_encoder.backbone.")
    return {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def version_of(tensors: Mapping[str, Tensor], config: Mapping[str, object] | None) -> str:
    """Return ``2.1`` or ``2``.

    They differ in what is for videos: the result is empty without its tensors and settings.
    """
    if any(name in tensors for name in _OCCLUSION):
        return "2.1"
    if any(name.startswith("memory_encoder.") for name in tensors):
        return "2"
    setting = (config or {}).get("enable_occlusion_spatial_embedding")
    return {True: "2.1", False: "2"}[setting] if isinstance(setting, bool) else ""


def library_tensors(tensors: Mapping[str, Tensor], network: nn.Module, title: str) -> State:
    """Return the tensors for images under the names that a *network* of the library has.

    Raises `ExportError` for a missing or unexpected tensor, or for a wrong shape; it has the name
    that the tensor has in the checkpoint.
    """
    naming = naming_of(tensors)
    state = {key: value for key, value in tensors.items() if not _is_of_video(key, naming)}
    if naming is Naming.TRANSFORMERS:
        return state
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    rows, width = shapes.pop(_POINTS)
    points = [_POINT.format(row) for row in range(rows)]
    originals = {name: _original(name) for name in shapes}
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(points, (1, width))
    expected |= {originals[name]: shape for name, shape in shapes.items()}
    check_tensors(state, expected, title)
    converted = {name: state[original] for name, original in originals.items()}
    converted[_POINTS] = torch.cat([state[point] for point in points])
    return converted


def _is_of_video(name: str, naming: Naming) -> bool:
    return re.match(_VIDEO_ONLY[naming], name) is not None


def _original(name: str) -> str:
    if name in _EXACT:
        return _EXACT[name]
    for pattern, original in _RENAMES:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(original)
    raise AssertionError(f"no pattern for {name}")

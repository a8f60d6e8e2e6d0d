"""The sizes of SAM 2: those that are published, and those of a configuration.

Source: sam2/configs of facebookresearch/sam2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from samserve.export.errors import ExportError
from samserve.export.families.library_config import Fields
from samserve.types import DynamicMultimask

PATCH = 16
"""Pixels of the model frame per side of a cell of the embedding."""

MAX_SIDE, MAX_WIDTH, MAX_BLOCKS = 2048, 4096, 64
"""Limits: pixels of the model frame, channels of any layer, blocks of a stage."""

MAX_ATTENTION = 16 << 30
"""Limit of the bytes that one block's attention needs for an image; 0.5 GiB for Hiera large."""

STABILITY = DynamicMultimask(0.05, 0.98)
"""As build_sam.py sets it for every checkpoint."""

REPVIT_NAMES = ("repvit_m1", "repvit_m1.dist_in1k")
REPVIT_WIDTHS = (48, 96, 192, 384)


@dataclass(frozen=True, slots=True)
class Hiera:
    """An image encoder of four stages.

    ``windows`` are sides in cells of the stage; ``global_blocks`` attend to the whole image, and
    are counted over all stages.  ``background`` is the side of the position embedding.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    global_blocks: tuple[int, ...]
    background: int


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a model; without a Hiera, the image encoder is EdgeTAM's RepViT.

    The embedding has ``grid`` times ``grid`` cells of ``channels``.
    """

    hiera: Hiera | None
    grid: int = 64
    channels: int = 256
    mlp_dim: int = 2048
    iou_dim: int = 256
    dynamic: DynamicMultimask | None = STABILITY

    @property
    def image_size(self) -> int:
        """Side of the model frame in pixels."""
        return PATCH * self.grid

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages of the image encoder."""
        return REPVIT_WIDTHS if self.hiera is None else self.hiera.widths


def _hiera(
    width: int,
    blocks: tuple[int, ...],
    global_blocks: tuple[int, ...],
    *,
    heads: int = 1,
    windows: tuple[int, ...] = (8, 4, 14, 7),
    background: int = 7,
) -> Size:
    doubled = tuple(width << stage for stage in range(4))
    every = tuple(heads << stage for stage in range(4))
    return Size(Hiera(doubled, blocks, every, windows, global_blocks, background))


TINY = _hiera(96, (1, 2, 7, 2), (5, 7, 9))
EDGETAM = Size(None)

PUBLISHED: dict[str, Size] = {
    "hiera_tiny": TINY,
    "hiera_small": _hiera(96, (1, 2, 11, 2), (7, 10, 13)),
    "hiera_base_plus": _hiera(112, (2, 3, 16, 3), (12, 16, 20), heads=2, background=14),
    "hiera_large": _hiera(144, (2, 6, 36, 4), (23, 33, 43), heads=2, windows=(8, 4, 16, 8)),
}
"""By the part of the names of checkpoints that SAM 2 and SAM 2.1 share."""


def name_of(size: Size) -> str:
    """Return the name of a published size, empty for another one."""
    plain = replace(size, dynamic=STABILITY)
    if plain == EDGETAM:
        return "edgetam"
    return next((name for name, each in PUBLISHED.items() if each == plain), "")


def published_size(trunk: Mapping[str, Tensor]) -> Size:
    """Return the published size of the tensors of a Hiera, under their names inside of it.

    Heads, windows and global blocks have no tensors.  Raises `ExportError` for a size that is not
    published; a missing or wrong tensor is found when the tensors are loaded.
    """
    widths = {
        int(match[1]): len(value)
        for name, value in trunk.items()
        if (match := re.fullmatch(r"blocks\.(\d{1,4})\.attn\.proj\.bias", name)) and value.ndim
    }
    sides = {
        name: tuple(trunk[name].shape[1:])
        for name in ("pos_embed", "pos_embed_window")
        if name in trunk
    }
    for size in PUBLISHED.values():
        if size.hiera is not None and _fits(size.hiera, widths, sides):
            return size
    found = f"{len(widths)} blocks, the first of {widths.get(0, 0)} channels"
    raise ExportError(
        f"this is not one of the published sizes of SAM 2 ({found}), and the file does not have "
        "its attention heads and windows: export a directory of the transformers library, whose "
        "config.json has them"
    )


def _fits(hiera: Hiera, widths: Mapping[int, int], sides: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether the tensors that there are agree with a size."""
    of_blocks = [
        width for width, count in zip(hiera.widths, hiera.blocks, strict=True) for _ in range(count)
    ]
    expected = {
        "pos_embed": (hiera.widths[0], hiera.background, hiera.background),
        "pos_embed_window": (hiera.widths[0], hiera.windows[0], hiera.windows[0]),
    }
    # All but a few blocks: one without this tensor is reported as such later.
    return (
        len(widths) > len(of_blocks) - 3
        and all(
            block < len(of_blocks) and of_blocks[block] == width for block, width in widths.items()
        )
        and all(expected[name] == side for name, side in sides.items())
    )


def configured_size(config: Mapping[str, Any], *, is_edgetam: bool) -> Size:
    """Return the sizes in a configuration of the transformers library.

    Raises `ExportError` for a value that is out of range or not supported.
    """
    fields = Fields(config)
    vision, prompts = fields.part("vision_config"), fields.part("prompt_encoder_config")
    decoder = fields.part("mask_decoder_config")
    side = prompts.square("image_size", 1024, 64, MAX_SIDE)
    if side % (2 * PATCH):
        raise ExportError(f"config.json: image_size is {side}, not a multiple of {2 * PATCH}")
    prompts.fixed(
        patch_size=PATCH,
        mask_input_channels=16,
        num_point_embeddings=4,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    decoder.fixed(
        num_hidden_layers=2,
        num_attention_heads=8,
        attention_downsample_rate=2,
        num_multimask_outputs=3,
        iou_head_depth=3,
    )
    backbone, grid = vision.part("backbone_config"), side // PATCH
    if is_edgetam:
        _check_repvit(backbone)
    size = Size(
        hiera=None if is_edgetam else _configured_hiera(backbone, grid),
        grid=grid,
        channels=decoder.integer("hidden_size", 256, 16, MAX_WIDTH),
        mlp_dim=decoder.integer("mlp_dim", 2048, 1, 4 * MAX_WIDTH),
        iou_dim=decoder.integer("iou_head_hidden_dim", 256, 1, MAX_WIDTH),
        dynamic=_configured_stability(decoder),
    )
    if size.channels % 16:
        raise ExportError(f"config.json: hidden_size is {size.channels}, not a multiple of 16")
    prompts.fixed(hidden_size=size.channels)
    vision.fixed(
        **_neck(size),
        fpn_kernel_size=1,
        fpn_stride=1,
        fpn_padding=0,
        fpn_top_down_levels=[2, 3],
        num_feature_levels=3,
    )
    return size


def _neck(size: Size) -> dict[str, Any]:
    """Return what the library stores more than once."""
    return {
        "backbone_channel_list": list(size.widths[::-1]),
        "backbone_feature_sizes": [[size.grid * level] * 2 for level in (4, 2, 1)],
        "fpn_hidden_size": size.channels,
    }


def _configured_stability(decoder: Fields) -> DynamicMultimask | None:
    delta = decoder.number("dynamic_multimask_stability_delta", STABILITY.delta, 0, 1000)
    thresh = decoder.number("dynamic_multimask_stability_thresh", STABILITY.thresh, 0, 1)
    if not decoder.flag("dynamic_multimask_via_stability", True):
        return None
    return DynamicMultimask(delta, thresh)


def _check_repvit(backbone: Fields) -> None:
    """Check that a backbone of timm is EdgeTAM's; arguments of others could load files."""
    backbone.one_of("architecture", REPVIT_NAMES)
    backbone.fixed(model_type="timm_wrapper")
    backbone.part("model_args").fixed(in_chans=3, features_only=True, out_indices=[0, 1, 2, 3])


def _configured_hiera(backbone: Fields, grid: int) -> Hiera:
    default = TINY.hiera
    assert default is not None
    backbone.fixed(
        model_type="sam2_hiera_det_model",
        num_channels=3,
        patch_kernel_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        query_stride=[2, 2],
        num_query_pool_stages=3,
        mlp_ratio=4.0,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    widths = backbone.integers("embed_dim_per_stage", default.widths, 1, MAX_WIDTH)
    blocks = backbone.integers("blocks_per_stage", default.blocks, 1, MAX_BLOCKS)
    heads = backbone.integers("num_attention_heads_per_stage", default.heads, 1, MAX_WIDTH)
    windows = backbone.integers("window_size_per_stage", default.windows, 2, 4 * grid)
    backbone.fixed(hidden_size=widths[0])
    if any(width % count for width, count in zip(widths, heads, strict=True)):
        raise ExportError("config.json: num_attention_heads_per_stage do not divide the channels")
    if 4 * grid % windows[0]:
        raise ExportError("config.json: windows of the first stage do not divide the model frame")
    hiera = Hiera(
        widths,
        blocks,
        heads,
        windows,
        backbone.increasing("global_attention_blocks", default.global_blocks, sum(blocks) - 1),
        backbone.square(
            "window_positional_embedding_background_size", default.background, 1, 4 * grid
        ),
    )
    # A few weights are enough to ask for any amount of memory.
    if _attention_bytes(hiera, grid) > MAX_ATTENTION:
        raise ExportError(
            "config.json: window_size_per_stage or global_attention_blocks need more than "
            f"{MAX_ATTENTION >> 30} GiB for the attention of one block"
        )
    return hiera


def _attention_bytes(hiera: Hiera, grid: int) -> int:
    """Return the bytes of the largest matrix of attention of an image, in float32."""
    values, first = 0, 0
    for stage, (blocks, heads) in enumerate(zip(hiera.blocks, hiera.heads, strict=True)):
        side, window = 4 * grid >> stage, hiera.windows[stage]
        padded = -(-side // window) * window
        values = max(values, heads * (padded * window) ** 2)
        of_stage = [block for block in hiera.global_blocks if first <= block < first + blocks]
        # The first block of a stage has the keys of the previous one, four times as many.
        keys = 4 if first in of_stage and stage else 1
        values = max(values, heads * keys * side**4 if of_stage else 0)
        first += blocks
    return 4 * values


def library_config(size: Size) -> Any:
    """Return the configuration of the transformers library, for its classes for images."""
    import transformers  # noqa: PLC0415  (slow, and rarely needed)

    prompts = {"hidden_size": size.channels, "image_size": size.image_size, "patch_size": PATCH}
    decoder = {
        "hidden_size": size.channels,
        "mlp_dim": size.mlp_dim,
        "iou_head_hidden_dim": size.iou_dim,
        "dynamic_multimask_via_stability": size.dynamic is not None,
    }
    neck = _neck(size)
    parts: Any = {"prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    if size.hiera is None:
        repvit = transformers.TimmWrapperConfig(
            architecture=REPVIT_NAMES[0],
            model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        )
        stages = transformers.EdgeTamVisionConfig(backbone_config=repvit, **neck)
        return transformers.EdgeTamConfig(vision_config=stages, **parts)
    hiera = size.hiera
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=hiera.widths[0],
        num_attention_heads=hiera.heads[0],
        image_size=[size.image_size, size.image_size],
        embed_dim_per_stage=list(hiera.widths),
        blocks_per_stage=list(hiera.blocks),
        num_attention_heads_per_stage=list(hiera.heads),
        window_size_per_stage=list(hiera.windows),
        global_attention_blocks=list(hiera.global_blocks),
        window_positional_embedding_background_size=[hiera.background] * 2,
    )
    vision = transformers.Sam2VisionConfig(backbone_config=trunk, **neck)
    return transformers.Sam2Config(vision_config=vision, **parts)

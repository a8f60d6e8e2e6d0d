"""The sizes of a SAM, derived from the shapes in its checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from samserve.export.errors import ExportError

GRID = 64
"""Cells per side of an embedding; cannot be derived from the shapes of a MobileSAM."""


@dataclass(frozen=True, slots=True)
class VitConfig:
    """Sizes of a plain ViT.

    ``windows`` has one entry per block: the side of its attention windows in cells, or of the whole
    grid if its attention is global.
    """

    embed_dim: int
    heads: int
    windows: tuple[int, ...]
    mlp_dim: int = 3072
    patch_size: int = 16


@dataclass(frozen=True, slots=True)
class TinyVitConfig:
    """Sizes of MobileSAM's TinyViT; its first stage is convolutional, the others have attention.

    ``widths`` and ``depths`` are those of the four stages, ``heads`` and ``windows`` those of the
    three with attention.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    patch_size: int = 16


@dataclass(frozen=True, slots=True)
class SamConfig:
    """Sizes of a SAM.  A side of the model frame has ``grid`` cells, each the size of a patch."""

    encoder: VitConfig | TinyVitConfig
    grid: int = GRID
    channels: int = 256
    decoder_mlp_dim: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 16

    @property
    def image_size(self) -> int:
        """Side of the model frame in pixels: 1024."""
        return self.grid * self.encoder.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-res logits in pixels: 256."""
        return 4 * self.grid

    @property
    def embedding(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of an embedding's tensors by name, without the batch axis."""
        return {"image_embedding": (self.channels, self.grid, self.grid)}

    @property
    def variant(self) -> str:
        """Name of the published size, else ``custom``."""
        return next(
            (name for name, encoder in VARIANTS.items() if encoder == self.encoder), "custom"
        )


VARIANTS: Mapping[str, VitConfig | TinyVitConfig] = {
    "vit_b": VitConfig(768, 12, (14, 14, 64) * 4, 3072),
    "vit_l": VitConfig(1024, 16, (14, 14, 14, 14, 14, 64) * 4, 4096),
    "vit_h": VitConfig(1280, 16, (14, 14, 14, 14, 14, 14, 14, 64) * 4, 5120),
    "mobile": TinyVitConfig((64, 128, 160, 320), (2, 2, 6, 2), (4, 5, 10), (7, 14, 7)),
}
"""The published encoders."""


def config_from_state(state: Mapping[str, Tensor]) -> SamConfig:
    """Derive the sizes from a state dict; they identify every variant of SAM 1.

    Raises `ExportError` if they are not those of a SAM.
    """
    try:
        return _read(state)
    except KeyError as error:
        raise ExportError(f"not a SAM checkpoint: {error} is missing") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ExportError(
            "not a SAM checkpoint: its tensors do not have the shapes of a SAM"
        ) from error


def _read(state: Mapping[str, Tensor]) -> SamConfig:
    tiny = any(key.startswith("image_encoder.layers.") for key in state)
    return SamConfig(
        encoder=_tiny_vit(state) if tiny else _vit(state),
        grid=GRID if tiny else state["image_encoder.pos_embed"].shape[1],
        channels=state["image_encoder.neck.0.weight"].shape[0],
        decoder_mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        decoder_depth=_count(state, "mask_decoder.transformer.layers."),
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )


def _vit(state: Mapping[str, Tensor]) -> VitConfig:
    embed_dim, _, patch_size, _ = state["image_encoder.patch_embed.proj.weight"].shape
    # The tables have one row per distance, from -(side - 1) to side - 1, and a column per channel.
    tables = [
        state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape
        for block in range(_count(state, "image_encoder.blocks."))
    ]
    heads = embed_dim // tables[0][1]
    if heads < 1:
        raise ValueError
    return VitConfig(
        embed_dim=embed_dim,
        heads=heads,
        windows=tuple((rows + 1) // 2 for rows, _ in tables),
        mlp_dim=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        patch_size=patch_size,
    )


def _tiny_vit(state: Mapping[str, Tensor]) -> TinyVitConfig:
    stages = range(_count(state, "image_encoder.layers."))
    first = [f"image_encoder.layers.{stage}.blocks.0." for stage in stages]
    # One bias per head and absolute distance.
    biases = [state[f"{prefix}attn.attention_biases"].shape for prefix in first[1:]]
    convolution = state[f"{first[0]}conv3.c.weight"].shape[0]
    return TinyVitConfig(
        widths=(
            convolution,
            *(state[f"{prefix}attn.norm.weight"].shape[0] for prefix in first[1:]),
        ),
        depths=tuple(_count(state, f"image_encoder.layers.{stage}.blocks.") for stage in stages),
        heads=tuple(heads for heads, _ in biases),
        windows=tuple(math.isqrt(distances) for _, distances in biases),
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})

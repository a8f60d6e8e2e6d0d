"""The sizes of a SAM, read from the shapes in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from samserve.export.errors import ExportError


@dataclass(frozen=True, slots=True)
class SamConfig:
    """Sizes of a SAM.

    ``windows`` holds one entry per block of the image encoder: the side of its attention windows
    in cells, or ``grid`` where attention is global. A cell is ``patch_size`` image pixels, and
    ``grid`` cells are a side of the model frame.
    """

    embed_dim: int
    heads: int
    windows: tuple[int, ...]
    grid: int = 64
    patch_size: int = 16
    mlp_dim: int = 3072
    channels: int = 256
    decoder_mlp_dim: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 16

    @property
    def image_size(self) -> int:
        """Side of the model frame in pixels: 1024."""
        return self.grid * self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-res logits in pixels: 256."""
        return 4 * self.grid


def config_from_state(state: Mapping[str, Tensor]) -> SamConfig:
    """Read the sizes from a state dict; every variant of SAM 1 tells itself by them."""
    try:
        return _read(state)
    except (KeyError, IndexError, ValueError) as error:
        raise ExportError(f"no SAM checkpoint: {error} is not there") from error


def _read(state: Mapping[str, Tensor]) -> SamConfig:
    embed_dim, _, patch_size, _ = state["image_encoder.patch_embed.proj.weight"].shape
    # The tables hold one row per distance, -(side - 1) to side - 1, and a head's channels.
    tables = [
        state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape
        for block in range(_count(state, "image_encoder.blocks."))
    ]
    return SamConfig(
        embed_dim=embed_dim,
        heads=embed_dim // tables[0][1],
        windows=tuple((rows + 1) // 2 for rows, _ in tables),
        grid=state["image_encoder.pos_embed"].shape[1],
        patch_size=patch_size,
        mlp_dim=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
        channels=state["image_encoder.neck.0.weight"].shape[0],
        decoder_mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        decoder_depth=_count(state, "mask_decoder.transformer.layers."),
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})

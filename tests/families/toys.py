"""Small models of each family, with masks around their prompts, and their exports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from samserve.export.pipeline import ExportOptions, export
from torch import nn

from tests.export.sam2_original import load_weights
from tests.oracle import edgetam, meta_sam2, photos, sam2, sam2_local, sam_hq

SHARPER = 4.0
"""Factor of all logits: many masks then pass the default thresholds of stability."""

STABILITY_DELTA = 1.0
"""SAM 2's distance of thresholds: with sharper logits, some single masks are still unstable."""

SAM2_SIZE = sam2.Sam2Size(
    width=16,
    blocks=(1, 2, 3, 2),
    heads=1,
    windows=(4, 4, 7, 4),
    global_blocks=(4,),
    grid=16,
    delta=STABILITY_DELTA,
)
"""A frame of 256 pixels; the decoder has the published size."""

FEW_PIXELS = (0.1, 0.08, 0.07, 0.06)
"""Fractions of an image that the masks of SAM-HQ cover: many are then no duplicates."""


@dataclass(frozen=True)
class Toy:
    """A model of the original implementation, and the repository with its export."""

    model: Any
    repository: Path
    name: str = "toy"

    @property
    def graphs(self) -> tuple[Path, Path]:
        """The files of the encoder and the decoder."""
        encoder, decoder = (
            self.repository / f"{self.name}_{role}" / "1" / "model.onnx"
            for role in ("encoder", "decoder")
        )
        return encoder, decoder


def sam2_toy(folder: Path, name: str = "toy") -> Toy:
    """Build a SAM 2."""
    return _of_library(sam2.model(SAM2_SIZE), meta_sam2.build(SAM2_SIZE), folder, name)


def edgetam_toy(folder: Path, name: str = "toy") -> Toy:
    """Build an EdgeTAM, whose image encoder is that of the published model."""
    model = edgetam.model(SAM2_SIZE.grid, SAM2_SIZE.channels, delta=STABILITY_DELTA)
    return _of_library(model, edgetam.original(SAM2_SIZE), folder, name)


def _of_library(model: Any, original: Any, folder: Path, name: str) -> Toy:
    """Move the masks of a Sam2Model or EdgeTamModel to their prompts, and export it.

    ``original`` has the same networks of the original implementation, and gets the weights.
    """
    sam2_local.localise(model, photos.calibration())
    _sharpen(head.proj_out for head in model.mask_decoder.output_hypernetworks_mlps)
    load_weights(original, model.state_dict())
    original.sam_mask_decoder.dynamic_multimask_stability_delta = STABILITY_DELTA
    return _exported(original, sam2.save(model, folder / "checkpoint"), folder, name)


def sam_hq_toy(folder: Path, name: str = "toy") -> Toy:
    """Build a SAM-HQ; it decodes embeddings that are rounded as samserve caches them."""
    sam = sam_hq.build(foreground=FEW_PIXELS)
    decoder = sam.mask_decoder
    _sharpen(head.layers[-1] for head in (*decoder.output_hypernetworks_mlps, decoder.hf_mlp))
    torch.save(sam.state_dict(), folder / "sam_hq.pth")
    rounded = sam_hq.round_embeddings_to_half(sam)
    return _exported(rounded, folder / "sam_hq.pth", folder, name)


def _sharpen(layers: Iterable[nn.Linear]) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.weight *= SHARPER
            layer.bias *= SHARPER


def _exported(model: Any, checkpoint: Path, folder: Path, name: str) -> Toy:
    repository = folder / "repository"
    export(checkpoint, ExportOptions(repository, name, check_parity=False))
    return Toy(model, repository, name)


MAKERS: dict[str, Callable[[Path, str], Toy]] = {
    "sam2": sam2_toy,
    "edgetam": edgetam_toy,
    "sam_hq": sam_hq_toy,
}

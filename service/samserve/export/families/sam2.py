"""SAM 2, SAM 2.1 and EdgeTAM, on the classes of the transformers library."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.errors import ExportError
from samserve.export.families.base import CUSTOM, Naming, Network, Shapes, load_tensors
from samserve.export.families.sam2_graphs import DecoderGraph, EncoderGraph, HieraTrunk, TimmTrunk
from samserve.export.families.sam2_names import library_tensors, naming_of, trunk_of, version_of
from samserve.export.families.sam2_sizes import (
    EDGETAM,
    Size,
    configured_size,
    library_config,
    name_of,
    published_size,
)
from samserve.export.sources.files import shown
from samserve.export.sources.source import Checkpoint
from samserve.models import families

HIGH_RES_0, HIGH_RES_1, EMBEDDING = "high_res_0", "high_res_1", "image_embedding"


class Sam2Network(Network):
    """The networks of a `Sam2Model` or `EdgeTamModel` of the library, of a given size."""

    family = families.SAM2
    prompt_encoder = "prompts"

    def __init__(self, model: Any, size: Size, *, title: str, variant: str, naming: Naming) -> None:
        self.model, self.title, self.naming = model, title, naming
        self.variant, self.name = variant or CUSTOM, variant
        width, grid = size.channels, size.grid
        self.shapes = Shapes(
            size.image_size,
            4 * grid,
            {
                HIGH_RES_0: (width // 8, 4 * grid, 4 * grid),
                HIGH_RES_1: (width // 4, 2 * grid, 2 * grid),
                EMBEDDING: (width, grid, grid),
            },
        )
        self.parameters: Mapping[str, str] = {}
        if size.dynamic is not None:
            self.parameters = {
                "multimask_stability_delta": repr(size.dynamic.delta),
                "multimask_stability_thresh": repr(size.dynamic.thresh),
            }
        backbone = model.vision_encoder.backbone
        # Before weights are halved: the resized position embedding is computed in float32.
        self._trunk = TimmTrunk(backbone) if size.hiera is None else HieraTrunk(backbone, grid)

    def encoder_graph(self) -> nn.Module:
        """See `Network.encoder_graph`."""
        return EncoderGraph(self.model, self._trunk)

    def decoder_graph(self) -> nn.Module:
        """See `Network.decoder_graph`."""
        return DecoderGraph(self.model, self.shapes.image_size)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """See `Network.encoder_modules`."""
        decoder = self.model.mask_decoder
        return [self.model.vision_encoder, decoder.conv_s0, decoder.conv_s1]


def load(checkpoint: Checkpoint) -> Sam2Network:
    """Build the networks for images of a SAM 2 or 2.1 for images or videos.

    Without a configuration, it has to be of a published size.  Raises `ExportError`.
    """
    tensors, config = checkpoint.tensors, checkpoint.config
    size = (
        published_size(trunk_of(tensors))
        if config is None
        else configured_size(config, is_edgetam=False)
    )
    version = version_of(tensors, config)
    title, name = f"SAM {version or 2}", name_of(size)
    model = _model("Sam2Model", size, tensors, title)
    variant = f"sam{version}_{name}" if name and version else name
    return Sam2Network(model, size, title=title, variant=variant, naming=naming_of(tensors))


def load_edgetam(checkpoint: Checkpoint) -> Sam2Network:
    """Build the networks for images of an EdgeTAM for images or videos.  Raises `ExportError`."""
    tensors, config = checkpoint.tensors, checkpoint.config
    size = EDGETAM if config is None else configured_size(config, is_edgetam=True)
    fused = _timm("timm.utils").reparameterize_model
    model = _model("EdgeTamModel", size, tensors, "EdgeTAM")
    # In float32: batch norms have variances beyond the range of float16, and are slow.
    backbone = model.vision_encoder.backbone
    backbone.timm_model = fused(backbone.timm_model, inplace=True).requires_grad_(False)
    return Sam2Network(
        model, size, title="EdgeTAM", variant=name_of(size), naming=naming_of(tensors)
    )


def _model(kind: str, size: Size, tensors: Mapping[str, Tensor], title: str) -> Any:
    """Build a model of the library with the tensors of a checkpoint."""
    import transformers  # noqa: PLC0415  (slow, and rarely needed)

    # On the meta device, which allocates nothing: every value comes from the checkpoint.
    with torch.device("meta"):
        # "sdpa" only where there is no attention: the library warns that timm ignores "eager".
        attention = "eager" if size.hiera else {"": "eager", "vision_config": "sdpa"}
        config = library_config(size)
        model = getattr(transformers, kind)._from_config(config, attn_implementation=attention)
    load_tensors(model, library_tensors(tensors, model, title), title)
    return model


def check_timm() -> None:
    """Raise `ExportError` if EdgeTAM cannot be built, because timm cannot be imported."""
    _timm("timm.utils")


def _timm(module: str) -> Any:
    """Import a module of timm."""
    try:
        return importlib.import_module(module)
    # A torchvision for another torch raises RuntimeError.
    except (ImportError, RuntimeError) as error:
        reason = shown(" ".join(str(error).split()))
        raise ExportError(
            "EdgeTAM's image encoder is in the package timm, which cannot be imported: install "
            f"timm, and torchvision for this torch ({reason})"
        ) from error

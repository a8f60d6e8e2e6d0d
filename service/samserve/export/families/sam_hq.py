"""SAM-HQ (ViT-B, ViT-L, ViT-H) and Light HQ-SAM, on the modules of `samserve.export.sam`.

Their image encoders are those of SAM 1 and MobileSAM, so the sizes are read from the shapes in the
same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from samserve.export.errors import ExportError
from samserve.export.families.base import CUSTOM, Naming, Network, Shapes, load_tensors
from samserve.export.families.sam1_config import check_config
from samserve.export.families.sam_hq_names import original_names
from samserve.export.sam.config import SamConfig, VitConfig, config_from_state
from samserve.export.sam.hq import HqDecoderGraph, HqEncoderGraph, SamHq
from samserve.export.sources.source import Checkpoint
from samserve.models import families

_VARIANTS = {"mobile": "vit_tiny"}
"""Names that SAM-HQ gives to sizes of SAM 1; other sizes have the same names."""


class SamHqNetwork(Network):
    """The networks of a SAM-HQ."""

    family = families.SAM_HQ
    title = "SAM-HQ"

    def __init__(self, sam: SamHq, naming: Naming) -> None:
        config = sam.config
        self.sam, self.naming = sam, naming
        self.variant = _VARIANTS.get(config.variant, config.variant)
        self.name = "" if self.variant == CUSTOM else f"sam_hq_{self.variant}"
        side, width = config.mask_size, config.channels // 8
        embedding = {**config.embedding, "hq_features": (width, side, side)}
        self.shapes = Shapes(config.image_size, config.mask_size, embedding)
        self.parameters: Mapping[str, str] = {}

    def encoder_graph(self) -> nn.Module:
        """See `Network.encoder_graph`."""
        return HqEncoderGraph(self.sam)

    def decoder_graph(self) -> nn.Module:
        """See `Network.decoder_graph`."""
        return HqDecoderGraph(self.sam)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """See `Network.encoder_modules`."""
        decoder = self.sam.mask_decoder
        return [self.sam.image_encoder, decoder.embedding_encoder, decoder.compress_vit_feat]


def load(checkpoint: Checkpoint) -> SamHqNetwork:
    """Build the networks; their sizes are derived from the tensors.

    Raises `ExportError` for a missing or unexpected tensor, for a wrong shape, and for a
    configuration of another model.
    """
    naming, state = original_names(checkpoint.tensors)
    config = config_from_state(state)
    if checkpoint.config is not None:
        check_config(checkpoint.config, config)
    _check_early_features(config)
    # On the meta device, which allocates nothing: every value comes from the checkpoint.
    with torch.device("meta"):
        sam = SamHq(config)
    load_tensors(sam, state, "SAM-HQ")
    return SamHqNetwork(sam, naming)


def _check_early_features(config: SamConfig) -> None:
    """Raise `ExportError` for a ViT without the block whose output the HQ features need."""
    encoder = config.encoder
    if isinstance(encoder, VitConfig) and config.grid not in encoder.windows:
        raise ExportError("not a SAM-HQ: none of its blocks has global attention")

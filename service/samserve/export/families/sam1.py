"""SAM (ViT-B, ViT-L, ViT-H) and MobileSAM, on the modules of `samserve.export.sam`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from samserve.export.families.base import CUSTOM, Naming, Network, Shapes, load_tensors
from samserve.export.families.sam1_config import check_config
from samserve.export.families.sam1_names import original_names
from samserve.export.sam.config import config_from_state
from samserve.export.sam.graphs import DecoderGraph, EncoderGraph
from samserve.export.sam.model import Sam
from samserve.export.sources.source import Checkpoint
from samserve.models import families

_NAMES = {"mobile": "mobile_sam", CUSTOM: ""}
"""Default names; of other variants, ``sam_`` and the variant."""


class Sam1Network(Network):
    """The networks of a SAM."""

    family = families.SAM1
    title = "Segment Anything"

    def __init__(self, sam: Sam, naming: Naming) -> None:
        config = sam.config
        self.sam, self.naming, self.variant = sam, naming, config.variant
        self.name = _NAMES.get(self.variant, f"sam_{self.variant}")
        self.shapes = Shapes(config.image_size, config.mask_size, config.embedding)
        self.parameters: Mapping[str, str] = {}

    def encoder_graph(self) -> nn.Module:
        """See `Network.encoder_graph`."""
        return EncoderGraph(self.sam)

    def decoder_graph(self) -> nn.Module:
        """See `Network.decoder_graph`."""
        return DecoderGraph(self.sam)

    def encoder_modules(self) -> Sequence[nn.Module]:
        """See `Network.encoder_modules`."""
        return [self.sam.image_encoder]


def load(checkpoint: Checkpoint) -> Sam1Network:
    """Build the networks; their sizes are derived from the tensors.  Raises `ExportError`."""
    naming, state = original_names(checkpoint.tensors)
    if checkpoint.config is not None:
        check_config(checkpoint.config, config_from_state(state))
    return Sam1Network(sam_from(state), naming)


def sam_from(state: Mapping[str, Tensor]) -> Sam:
    """Build a SAM from tensors under the names of the original checkpoints.

    Raises `ExportError` for a missing or unexpected tensor, or for a wrong shape.
    """
    # On the meta device, which allocates nothing: every value comes from the checkpoint.
    with torch.device("meta"):
        sam = Sam(config_from_state(state))
    load_tensors(sam, state, "SAM")
    return sam

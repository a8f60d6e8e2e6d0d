"""A complete SAM, with the structure of its checkpoint."""

from __future__ import annotations

from torch import nn

from samserve.export.sam.config import SamConfig, TinyVitConfig
from samserve.export.sam.image_encoder import ImageEncoder
from samserve.export.sam.mask_decoder import MaskDecoder
from samserve.export.sam.prompt_encoder import PromptEncoder
from samserve.export.sam.tiny_vit import TinyVit


class Sam(nn.Module):
    """The three networks; :mod:`samserve.export.sam.graphs` combines them for serving."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.encoder
        self.image_encoder = (
            TinyVit(config, sizes)
            if isinstance(sizes, TinyVitConfig)
            else ImageEncoder(config, sizes)
        )
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

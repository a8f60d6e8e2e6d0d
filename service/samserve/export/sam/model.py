"""A whole SAM, as its checkpoint holds it."""

from __future__ import annotations

from torch import nn

from samserve.export.sam.config import SamConfig
from samserve.export.sam.image_encoder import ImageEncoder
from samserve.export.sam.mask_decoder import MaskDecoder
from samserve.export.sam.prompt_encoder import PromptEncoder


class Sam(nn.Module):
    """The three networks; :mod:`samserve.export.sam.graphs` joins them for serving."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

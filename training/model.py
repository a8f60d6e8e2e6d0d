"""The whole model: what a training run optimises and a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training.decoder import MaskDecoder
from training.encoder import ImageEncoder


class SamTiny(nn.Module):
    """Encoder and decoder together; see the two classes for tensors and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder()
        self.decoder = MaskDecoder()


def load_model(checkpoint: Path) -> SamTiny:
    """Read a checkpoint of ``training.train``, ready for inference (averaged weights)."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = SamTiny()
    model.load_state_dict(state["average"])
    return model.eval()

"""The whole model: what a training run optimises and a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from training.decoder import MaskDecoder
from training.encoder import ImageEncoder
from training.iou import IouHead, MaskJudge


class SamTiny(nn.Module):
    """Encoder and decoder together; see the two classes for tensors and frames.

    ``judged``: with the larger head for predicted IoU, as after `training.judging`.
    """

    def __init__(self, judged: bool = False) -> None:
        super().__init__()
        self.encoder = ImageEncoder()
        self.decoder = MaskDecoder(MaskJudge if judged else IouHead)


def load_model(checkpoint: Path) -> SamTiny:
    """Averaged weights of ``final.pt`` or of a checkpoint on the way there, for inference."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    judged = "decoder.iou_head.see.weight" in state["average"]
    model = SamTiny(judged)
    model.load_state_dict(state["average"])
    return model.eval()

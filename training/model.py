"""The model that a training run optimises and a checkpoint contains."""

from __future__ import annotations

from pathlib import Path

import torch
from samserve.export.tiny.decoder import MaskDecoder
from samserve.export.tiny.iou import IouHead, MaskIouHead
from torch import nn

from training.encoder import ImageEncoder


class SamTiny(nn.Module):
    """Encoder and decoder; see the two classes for tensors and frames.

    With ``mask_iou_head`` it has the larger head for predicted IoU, as after `training.iou_fit`.
    """

    def __init__(self, mask_iou_head: bool = False) -> None:
        super().__init__()
        self.encoder = ImageEncoder()
        self.decoder = MaskDecoder(MaskIouHead if mask_iou_head else IouHead)


def load_model(checkpoint: Path) -> SamTiny:
    """Load the averaged weights of ``final.pt`` or an earlier checkpoint, for inference."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    mask_iou_head = "decoder.iou_head.see.weight" in state["average"]
    model = SamTiny(mask_iou_head)
    model.load_state_dict(state["average"])
    return model.eval()

"""EdgeTAM of the transformers library, whose image encoder is timm's RepViT-M1.

The library uses timm only if it finds torchvision; here a stand-in has the names that timm needs.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.oracle import meta_sam2, photos, torchvision_shim
from tests.oracle.redraw import redraw
from tests.oracle.sam2 import Sam2Size

REPVIT: dict[str, Any] = {
    "architecture": "repvit_m1",
    "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
}
BRANCHES = (
    *("token_mixer.conv.bn", "token_mixer.conv1.bn"),
    *("channel_mixer.conv2.bn", "ffn.conv2.bn"),
)
"""Norms before sums: with 20 blocks, their outputs add up."""


def install() -> None:
    """Make the library find timm; for the export as well."""
    torchvision_shim.install()
    timm = importlib.import_module("timm")
    requirements = importlib.import_module("transformers.utils.import_utils").BACKENDS_MAPPING
    requirements["timm"] = (lambda: True, requirements["timm"][1])
    wrapper = "transformers.models.timm_wrapper.modeling_timm_wrapper"
    importlib.import_module(wrapper).timm = timm  # type: ignore[attr-defined]


def config(grid: int = 64, channels: int = 256, delta: float = 0.05) -> Any:
    """Return the configuration of a size; the published one by default."""
    library = importlib.import_module("transformers")
    vision = library.EdgeTamVisionConfig(
        backbone_config=library.TimmWrapperConfig(**REPVIT),
        backbone_feature_sizes=[[grid << level] * 2 for level in (2, 1, 0)],
        fpn_hidden_size=channels,
    )
    return library.EdgeTamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": channels, "image_size": 16 * grid},
        mask_decoder_config={
            "hidden_size": channels,
            "mlp_dim": 8 * channels,
            "iou_head_hidden_dim": channels,
            "dynamic_multimask_stability_delta": delta,
        },
    )


def model(grid: int = 64, channels: int = 256, *, seed: int = 0, delta: float = 0.05) -> Any:
    """Build an EdgeTamModel with seeded weights, see `redraw`; the frame has 16 * grid pixels.

    ``delta`` is that of its dynamic multimask.
    """
    install()
    library = importlib.import_module("transformers")
    made = library.EdgeTamModel(config(grid, channels, delta))
    redraw(made, seed)
    with torch.no_grad():
        # Features of the size of other embeddings; with larger ones, rounding changes masks.
        for conv in made.vision_encoder.neck.convs:
            conv.weight.mul_(0.1)
        _calibrate(made.vision_encoder.backbone.timm_model, 16 * grid)
    return made.eval().requires_grad_(False)


class Trunk(nn.Module):
    """The image encoder as facebookresearch/EdgeTAM wraps it, modeling/backbones/timm.py."""

    def __init__(self) -> None:
        super().__init__()
        install()
        create = importlib.import_module("timm").create_model
        self.body = create(REPVIT["architecture"], pretrained=False, **REPVIT["model_args"])
        self.channel_list = self.body.feature_info.channels()[::-1]

    def forward(self, planes: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps ``[B,C,h,w]``."""
        return list(self.body(planes))


def original(size: Sam2Size, seed: int = 0) -> Any:
    """Build an EdgeTAM for images of the original modules, with seeded weights.

    EdgeTAM's own package is SAM 2's with this trunk; what else it adds is for videos.
    """
    sam = meta_sam2.unseeded(size, version="2", trunk=Trunk())
    redraw(sam, seed)
    with torch.no_grad():
        _calibrate(sam.image_encoder.trunk.body, 16 * size.grid)
        for level in sam.image_encoder.neck.convs:
            level.conv.weight.mul_(0.1)
    return sam.eval().requires_grad_(False)


def save(edgetam: Any, folder: Path) -> Path:
    """Write a directory for ``from_pretrained``."""
    edgetam.save_pretrained(folder)
    return folder


def _calibrate(backbone: nn.Module, side: int) -> None:
    """Set the statistics of batch norms as training does, so that activations keep their scale."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if name.endswith(BRANCHES):
            module.weight.mul_(0.3)
    images = [image.resize((side, side)) for image in map(Image.fromarray, photos.calibration())]
    planes = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    backbone.train()(planes.permute(0, 3, 1, 2) / 58 - 2)

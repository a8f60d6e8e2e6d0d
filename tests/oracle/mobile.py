"""MobileSAM's original image encoder.

The package that carries it, samexporter, is installed without what it asks for; of timm its encoder
needs only the four names below.
"""

from __future__ import annotations

import contextlib
import io
import sys
from types import ModuleType

import numpy as np
import torch
from torch import nn

SETTINGS = {
    "img_size": 1024,
    "embed_dims": [64, 128, 160, 320],
    "depths": [2, 2, 6, 2],
    "num_heads": [2, 4, 5, 10],
    "window_sizes": [7, 7, 14, 7],
    "drop_path_rate": 0.0,
    "layer_lr_decay": 0.8,
}
"""As ``build_sam_vit_t`` of ChaoningZhang/MobileSAM sets them."""


class _DropPath(nn.Identity):
    """Drops nothing when a network is not being trained."""


def _install_timm() -> None:
    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    layers.DropPath = _DropPath  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    parents = {name: ModuleType(name) for name in ("timm", "timm.models")}
    sys.modules.update({**parents, layers.__name__: layers, registry.__name__: registry})


_install_timm()

from samexporter.mobile_encoder.tiny_vit_sam import TinyViT  # noqa: E402


def image_encoder() -> nn.Module:
    """Build the encoder with random weights; ``img_size`` is what SamPredictor asks it for."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints learning rates
        encoder: nn.Module = TinyViT(**SETTINGS)
    return encoder


def enliven(encoder: nn.Module, pictures: torch.Tensor) -> None:
    """Let every weight count, and pictures differ in their embeddings.

    ``pictures`` are standardised, float32 ``[n,3,1024,1024]``; the batch norms take their
    statistics from them, which keeps signals alive as training would.
    """
    for name, parameter in encoder.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bn.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 2:
            parameter.mul_(4)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    encoder.train()
    encoder(pictures)
    # Going back refreshes the biases that it keeps spread out for its answers.
    encoder.eval()
    assert np.isfinite(sum(float(norm.running_var.sum()) for norm in norms))  # type: ignore[arg-type]

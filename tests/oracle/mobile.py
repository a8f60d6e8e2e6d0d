"""MobileSAM's original image encoder.

It is part of the package samexporter, which is installed without its dependencies; of timm, the
encoder needs only the four names below. They replace timm during the import: its present version
warns that their modules are deprecated.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
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
    """The identity: outside training, nothing is dropped."""


def _stand_ins() -> dict[str, ModuleType]:
    """Return modules with the names of timm that the encoder imports."""
    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    layers.DropPath = _DropPath  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    parents = {name: ModuleType(name) for name in ("timm", "timm.models")}
    return {**parents, layers.__name__: layers, registry.__name__: registry}


@contextlib.contextmanager
def old_timm() -> Iterator[None]:
    """Replace timm for the import of an encoder; the real timm is as before afterwards."""
    stand_ins = _stand_ins()
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


with old_timm():
    from samexporter.mobile_encoder.tiny_vit_sam import TinyViT


def image_encoder() -> nn.Module:
    """Build the encoder with random weights; SamPredictor reads its ``img_size``."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints learning rates
        encoder: nn.Module = TinyViT(**SETTINGS)
    return encoder


def randomise(encoder: nn.Module, images: torch.Tensor) -> None:
    """Randomise weights so that each has an effect and images differ in their embeddings.

    ``images`` are standardised, float32 ``[n,3,1024,1024]``; the statistics of the batch norms are
    computed from them, so that activations keep their scale as after training.
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
    encoder(images)
    # Switching back refreshes the expanded attention biases that it caches for inference.
    encoder.eval()
    assert np.isfinite(sum(float(norm.running_var.sum()) for norm in norms))  # type: ignore[arg-type]

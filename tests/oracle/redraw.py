"""Seeded weights with which every part of a network has an effect.

The initial weights of the transformers library are useless for comparisons: masks differ by 1e-4,
and some parameters are zero, so that a graph without them passes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KEPT = ("num_batches_tracked", "inv_freq", "position_ids")


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Redraw every parameter and floating buffer of a model on the CPU.

    Matrices have the standard deviation ``1 / sqrt(fan_in)``, embeddings and single vectors 1,
    biases 0.1; norms are around 1 and 0, and their running variances around 1.
    """
    random = torch.Generator().manual_seed(seed)
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        # Not timm's ConvNorm, which has a convolution too.
        if "norm" in type(module).__name__.lower() and not [*module.children()]
        for name in module.state_dict()
    }
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            if value.is_floating_point() and not name.endswith(KEPT):
                value.copy_(_drawn(name, value, name in norms, random))


def _drawn(name: str, value: Tensor, in_norm: bool, random: torch.Generator) -> Tensor:
    noise = torch.randn(value.shape, generator=random)
    if in_norm:
        around = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
        return (around + 0.1 * noise).abs() if around else 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if value.ndim < 2 or any(part in name for part in ("embed", "token", "gaussian")):
        # The kernels of patch embeddings are matrices, whatever their names.
        is_kernel = value.ndim == 4 and value.shape[1] in (1, 3)
        return noise / math.sqrt(value[0].numel()) if is_kernel else noise
    return noise / math.sqrt(value[0].numel())

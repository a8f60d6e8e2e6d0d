"""Conversion of an image encoder to half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.errors import ExportError
from samserve.export.sam.layers import LayerNorm2d

FLOAT32_LAYERS = (nn.LayerNorm, LayerNorm2d)
"""Norms sum squares, which exceed the range of float16 first; their cost is negligible."""


def halve(encoder: nn.Module) -> None:
    """Convert the encoder's weights and arithmetic to float16, except its norms.

    Its output also becomes float16.  Raises `ExportError` for a weight beyond the range of float16.
    """
    for name, value in encoder.state_dict().items():
        if value.is_floating_point() and value.abs().max() > torch.finfo(torch.float16).max:
            raise ExportError(f"{name} has values beyond the range of float16")
    encoder.half()
    for module in encoder.modules():
        if isinstance(module, FLOAT32_LAYERS):
            module.float()
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow)


def _widen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _narrow(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.half()

"""An image encoder in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samserve.export.errors import ExportError
from samserve.export.sam.layers import LayerNorm2d

KEPT_WIDE = (nn.LayerNorm, LayerNorm2d)
"""Norms sum squares, which leave the range of float16 first; they cost next to nothing."""


def halve(encoder: nn.Module) -> None:
    """Turn the encoder's weights and arithmetic into float16, all but its norms.

    Its output becomes float16 too.  Raises `ExportError` for a weight beyond float16's range.
    """
    for name, value in encoder.state_dict().items():
        if value.is_floating_point() and value.abs().max() > torch.finfo(torch.float16).max:
            raise ExportError(f"{name} holds values beyond the range of float16")
    encoder.half()
    for module in encoder.modules():
        if isinstance(module, KEPT_WIDE):
            module.float()
            module.register_forward_pre_hook(_widen)
            module.register_forward_hook(_narrow)


def _widen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.float() for value in inputs)


def _narrow(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.half()

"""Two optimisers at one rate: Muon for matrices, AdamW for the rest.

Muon (Jordan and others, 2024) makes each update of a matrix orthogonal. With it 200 steps reached
what AdamW reached after 300. PyTorch's Muon accepts only two-dimensional parameters, so
convolutions are passed as views ``[outputs, inputs * kernel]`` of their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE, REST_RATE = 0.02, 2.5e-3
MATRIX_DECAY, REST_DECAY = 0.01, 0.02
NOT_MATRICES = (
    "model.encoder.stem.0.",
    "model.decoder.mask_head.",
    "model.decoder.iou_head.",
    "dense.",
)
"""First and last layers are trained by AdamW, as Muon's authors recommend."""


class Optimiser:
    """Updates the parameters of a model whose weights are in channels-last format."""

    def __init__(self, model: nn.Module) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            by_muon = parameter.ndim > 1 and not name.startswith(NOT_MATRICES)
            (matrices if by_muon else rest).append(parameter)
        self._matrices, self._views = matrices, [nn.Parameter(_flat(one)) for one in matrices]
        for matrix, view in zip(matrices, self._views, strict=True):
            if view.data_ptr() != matrix.data_ptr():
                raise ValueError(
                    f"a weight of {tuple(matrix.shape)} is not in channels-last format"
                )
        self._muon = torch.optim.Muon(self._views, MATRIX_RATE, weight_decay=MATRIX_DECAY)
        self._adam = torch.optim.AdamW(rest, REST_RATE, weight_decay=REST_DECAY, fused=True)

    def step(self, scale: float) -> None:
        """Update from the parameters' gradients at *scale* times the peak rates."""
        for view, matrix in zip(self._views, self._matrices, strict=True):
            view.grad = None if matrix.grad is None else _flat(matrix.grad)
        for optimiser, peak in ((self._muon, MATRIX_RATE), (self._adam, REST_RATE)):
            for group in optimiser.param_groups:
                group["lr"] = peak * scale
            optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def _flat(weight: Tensor) -> Tensor:
    """Return rows of outputs; a view if the weight is in channels-last order."""
    weight = weight.detach()
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight.flatten(1)

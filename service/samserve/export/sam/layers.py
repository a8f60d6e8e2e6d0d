"""Layers that several networks of SAM share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of ``[n,C,h,w]``, shape kept."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalise every position by the mean and variance of its channels."""
        centred = features - features.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        normal = centred / torch.sqrt(variance + self.eps)
        return normal * self.weight.reshape(-1, 1, 1) + self.bias.reshape(-1, 1, 1)


class TransformerMlp(nn.Module):
    """Two linear layers around an activation, on the last axis."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[...,width]`` to ``[...,width]``."""
        result: Tensor = self.lin2(self.activation(self.lin1(tokens)))
        return result


class Mlp(nn.Module):
    """Linear layers with ReLU between them, on the last axis."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, values: Tensor) -> Tensor:
        """Map ``[...,inputs]`` to ``[...,outputs]``."""
        for layer in self.layers[:-1]:
            values = torch.relu(layer(values))
        result: Tensor = self.layers[-1](values)
        return result

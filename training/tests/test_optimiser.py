"""Both optimisers update the model."""

from __future__ import annotations

import copy

import pytest
import torch
from samserve.export.tiny.layers import channels_last
from torch import nn

from training.model import SamTiny
from training.optimiser import MATRIX_RATE, Optimiser


def small() -> nn.Sequential:
    """Return a model with a convolution and other layers."""
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, 2)
    return channels_last(nn.Sequential(*layers))


def train(model: nn.Module, optimiser: Optimiser, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.zero_grad()
        model(torch.rand(2, 4, 3, 3, generator=generator)).square().sum().backward()
        optimiser.step(0.5)


def test_every_parameter_is_updated() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    train(model, Optimiser(model), 1)
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_update_of_a_convolution_is_orthogonal() -> None:
    model = small()
    first = next(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = first.detach().clone()
    Optimiser(model).step(0.5)
    update = (before - first.detach()).flatten(1)
    values = torch.linalg.svdvals(update) / (0.5 * MATRIX_RATE)
    # Five Newton-Schulz steps bring singular values close to 1; weight decay is small beside that.
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_resumed_run_matches_an_uninterrupted_one() -> None:
    whole = small()
    train(whole, Optimiser(whole), 2)
    first = small()
    optimiser = Optimiser(first)
    train(first, optimiser, 1)
    second = small()
    second.load_state_dict(first.state_dict())
    resumed = Optimiser(second)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    generator = torch.Generator().manual_seed(1)
    torch.rand(2, 4, 3, 3, generator=generator)
    second.zero_grad()
    second(torch.rand(2, 4, 3, 3, generator=generator)).square().sum().backward()
    resumed.step(0.5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_weights_in_another_memory_format_are_invalid() -> None:
    with pytest.raises(ValueError, match="channels-last"):
        Optimiser(SamTiny())

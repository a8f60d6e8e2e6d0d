"""The decoder satisfies the model contract, on a small grid with random weights."""

from __future__ import annotations

import pytest
import torch
from samserve.export.tiny.decoder import MaskDecoder
from torch import Tensor

GRID = 16
Prompts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    model = MaskDecoder().eval()
    # Initially, masks are nearly constant: any comparison would pass.
    torch.nn.init.normal_(model.mask_head.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def embedding() -> Tensor:
    return torch.randn(1, 256, GRID, GRID, generator=torch.Generator().manual_seed(1))


def prompts(count: int, points: int, masks: int) -> Prompts:
    random = torch.Generator().manual_seed(2)
    coords = torch.rand(1, count, points, 2, generator=random) * GRID * 16
    labels = torch.randint(0, 2, (1, count, points), generator=random).float()
    return coords, labels, 6 * torch.randn(1, masks, 4 * GRID, 4 * GRID, generator=random)


@torch.no_grad()
def test_logits_depend_on_the_prompt(decoder: MaskDecoder, embedding: Tensor) -> None:
    logits, iou = decoder(embedding, *prompts(3, 1, 0))
    assert logits.shape == (1, 3, 4, 4 * GRID, 4 * GRID)
    assert iou.shape == (1, 3, 4)
    assert logits.std() > 0.5
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 0.1


@torch.no_grad()
def test_padding_points_have_no_effect(decoder: MaskDecoder, embedding: Tensor) -> None:
    coords, labels, masks = prompts(3, 2, 0)
    padded = torch.cat([coords, torch.full((1, 3, 2, 2), 77.0)], 2)
    ignored = torch.cat([labels, torch.full((1, 3, 2), -1.0)], 2)
    expected, actual = (
        decoder(embedding, coords, labels, masks),
        decoder(embedding, padded, ignored, masks),
    )
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("masks", [0, 1, 3])
def test_prompts_are_independent_of_each_other(
    decoder: MaskDecoder, embedding: Tensor, masks: int
) -> None:
    coords, labels, mask_input = prompts(3, 2, masks)
    batched = decoder(embedding, coords, labels, mask_input)
    for index in range(3):
        own = mask_input[:, index : index + 1]
        alone = decoder(embedding, coords[:, [index]], labels[:, [index]], own)
        for one, in_batch in zip(alone, batched, strict=True):
            torch.testing.assert_close(one[:, 0], in_batch[:, index], atol=1e-4, rtol=0)


@torch.no_grad()
def test_mask_input_affects_only_its_own_prompt(decoder: MaskDecoder, embedding: Tensor) -> None:
    coords, labels, mask_input = prompts(3, 1, 1)
    plain, _ = decoder(embedding, coords, labels, mask_input[:, :0])
    masked, _ = decoder(embedding, coords, labels, mask_input)
    assert (plain[:, 0] - masked[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(plain[:, 1:], masked[:, 1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_mask_without_points_is_a_prompt(decoder: MaskDecoder, embedding: Tensor) -> None:
    coords, labels, mask_input = prompts(2, 0, 2)
    without, _ = decoder(embedding, coords, labels, mask_input)
    ignored, _ = decoder(
        embedding, torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1), -1.0), mask_input
    )
    torch.testing.assert_close(without, ignored, atol=1e-4, rtol=0)

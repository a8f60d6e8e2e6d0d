"""The decoder as exported computes what the trained one does, on a small grid."""

from __future__ import annotations

import pytest
import torch
from samserve.export.tiny.decoder import MaskDecoder
from samserve.export.tiny.folded_decoder import FoldedDecoder
from samserve.export.tiny.iou import IouHead, MaskIouHead
from torch import Tensor

GRID = 16
BATCH = 2


@pytest.fixture(scope="module", params=[IouHead, MaskIouHead])
def decoder(request: pytest.FixtureRequest) -> MaskDecoder:
    torch.manual_seed(0)
    plain = MaskDecoder(request.param).eval()
    # Initially, some weights are so small, zero or equal that errors would not be seen.
    for name, weight in plain.named_parameters():
        if "norm." in name or name.endswith(("mask_head.weight", "bias", "token")):
            torch.nn.init.normal_(weight, std=0.3)
    return plain


def prompts(points: int, masks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three prompts per image: points of all kinds and a box, within and outside the image."""
    random = torch.Generator().manual_seed(points)
    coords = torch.rand(BATCH, 3, points, 2, generator=random) * 20 * GRID - 2 * GRID
    labels = torch.randint(-1, 2, (BATCH, 3, points), generator=random).float()
    if points > 1:
        labels[:, 1, -2:] = torch.tensor([2.0, 3.0])
        coords[:, 1, -1] = coords[:, 1, -2] + 50
    return coords, labels, 6 * torch.randn(BATCH, masks, 4 * GRID, 4 * GRID, generator=random)


@torch.no_grad()
@pytest.mark.parametrize(
    ("points", "masks"), [(0, 0), (0, 3), (1, 0), (1, 1), (2, 0), (2, 3), (5, 2)]
)
def test_folded_decoder_equals_the_trained_one(
    decoder: MaskDecoder, points: int, masks: int
) -> None:
    embedding = torch.randn(BATCH, 256, GRID, GRID, generator=torch.Generator().manual_seed(1))
    inputs = embedding, *prompts(points, masks)
    expected, expected_iou = decoder(*inputs)
    logits, iou = FoldedDecoder(decoder)(*inputs)
    assert expected.std() > 0.5
    assert expected_iou.std() > 1e-4
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(iou, expected_iou, atol=1e-5, rtol=0)

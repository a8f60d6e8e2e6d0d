"""The heads for predicted IoU of `FoldedDecoder`: those of `iou`, on logits with cells first."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samserve.export.tiny.iou import TOKENS, IouHead, MaskIouHead
from samserve.export.tiny.layers import convolution

SUBCELLS = 16
SAMPLE = slice(None, None, 5)
"""A diagonal of the sub-cells, as in `iou.describe`."""
ROWS, SAMPLE_ROWS = 8, 2
"""Cells that one row of a product contains: products of few columns waste most of their time."""


class FoldedIouHead(nn.Module):
    """Predicts the IoU as the head does of which it has the weights."""

    means: Tensor
    sharpen: Tensor
    offset: Tensor

    def __init__(self, plain: IouHead | MaskIouHead) -> None:
        super().__init__()
        self.hidden, self.token, self.out = plain.hidden, plain.token, plain.out
        self.pool_mask = FoldedMaskPool(plain) if isinstance(plain, MaskIouHead) else None
        self.last = plain.third if isinstance(plain, MaskIouHead) else plain.second
        means = torch.zeros(SUBCELLS, 2)
        means[:, 0] = 1 / SUBCELLS
        means[SAMPLE, 1] = 1 / 4
        self.register_buffer("means", torch.block_diag(*[means] * ROWS))
        sample = 4 * torch.eye(SUBCELLS)[SAMPLE]
        sharpen = torch.cat([sample, sample])
        self.register_buffer("sharpen", torch.block_diag(*[sharpen] * SAMPLE_ROWS))
        self.register_buffer("offset", torch.tensor(([-4.0] * 4 + [4.0] * 4) * SAMPLE_ROWS))

    def forward(self, fine: Tensor, deep: Tensor, cells: Tensor) -> Tensor:
        """Map ``[B*P,48,h,w]``, ``[B*P,112]``, logits ``[B,h*w,P*4,16]`` to ``[B*P,4]``."""
        planes = self._planes(cells)
        area, square = planes.mean(3).reshape(-1, TOKENS, 4)[..., 1::2].unbind(2)
        count = int(cells.shape[1])
        weights = planes[:, :, 1].reshape(-1, TOKENS, count)
        features = fine.permute(0, 2, 3, 1).reshape(-1, count, int(fine.shape[1]))
        pooled = (weights @ features) / (area * count + 1e-3).unsqueeze(2)
        summary = deep.unsqueeze(1).expand(-1, TOKENS, -1)
        parts = [pooled, summary, self._confidence(area, square, cells)]
        if self.pool_mask is not None:
            parts.append(self.pool_mask(fine, planes))
        hidden = torch.relu(self.hidden(torch.cat(parts, 2)) + self.token)
        score: Tensor = torch.sigmoid(self.out(torch.relu(self.last(hidden)))).squeeze(-1)
        return score

    def _planes(self, cells: Tensor) -> Tensor:
        """Return ``[B,P*4,4,h*w]``: means of probability and of its square, of all and sampled."""
        batch, count = cells.shape[0], int(cells.shape[1])
        inside = torch.sigmoid(cells)
        means = [
            (values.reshape(-1, ROWS * SUBCELLS) @ self.means).reshape(batch, count, -1, 2)
            for values in (inside, inside * inside)
        ]
        return torch.cat([mean.permute(0, 2, 3, 1) for mean in means], 2)

    def _confidence(self, area: Tensor, square: Tensor, cells: Tensor) -> Tensor:
        """Return the statistics ``[B*P,4,5]`` of ``iou._confidence``."""
        batch, count = cells.shape[0], int(cells.shape[1])
        rows = cells.reshape(-1, SAMPLE_ROWS * SUBCELLS)
        sharp = torch.sigmoid(functional.linear(rows, self.sharpen, self.offset))
        # A product, because means over the first axis are slow in ONNX Runtime.
        mean = torch.full((1, 1, count), 1 / count) @ sharp.reshape(batch, count, -1)
        narrow, wide = mean.reshape(-1, TOKENS, 2, 4).mean(3).unbind(2)
        statistics = [
            area.sqrt(),
            (area - square) / (area + 1e-3),
            square / (area + 1e-4),
            narrow / (wide + 1e-4),
            torch.log(area + 1e-4),
        ]
        return torch.stack(statistics, 2)


class FoldedMaskPool(nn.Module):
    """Convolves and pools masks, uncertain cells and features; the features once per prompt."""

    def __init__(self, plain: MaskIouHead) -> None:
        super().__init__()
        self.see, self.second = plain.see, plain.second
        inside, uncertain, selected = plain.first.weight.split([1, 1, plain.see.out_channels], 1)
        none = torch.zeros_like(inside)
        # Uncertainty is four times the difference of the means of probability and of its square.
        planes = torch.cat([inside + 4 * uncertain, none, -4 * uncertain, none], 1)
        self.first_mask = convolution(planes, plain.first.bias, stride=2, padding=1)
        self.first_seen = convolution(selected, stride=2, padding=1)

    def forward(self, fine: Tensor, planes: Tensor) -> Tensor:
        """Map ``[B*P,48,h,w]`` and ``[B,P*4,4,h*w]`` to ``[B*P,4,80]``."""
        rows, columns = (int(extent) for extent in fine.shape[2:])
        seen = self.first_seen(torch.relu(self.see(fine))).unsqueeze(1)
        seen = seen.expand(-1, TOKENS, -1, -1, -1).flatten(0, 1)
        masks = self.first_mask(planes.reshape(-1, 4, rows, columns))
        convolved = torch.relu(self.second(torch.relu(masks + seen)))
        mean = functional.adaptive_avg_pool2d(convolved, 1)
        largest = functional.adaptive_max_pool2d(convolved, 1)
        pooled = torch.cat([mean, largest], 1)
        return pooled.reshape(-1, TOKENS, int(pooled.shape[1]))

"""Prompt maps and queries of `FoldedDecoder`: those of `prompt_maps` and ``MaskDecoder``.

Shapes and frames are those of `prompt_maps`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samserve.export.tiny.decoder import COSINE_GAIN, HEAD_WIDTH, HEADS
from samserve.export.tiny.layers import CELL, EMBEDDING_CHANNELS, convolution
from samserve.export.tiny.prompt_maps import (
    BOX_SOFTNESS,
    GAUSSIAN_SIGMAS,
    MASK_SCALE,
    Points,
    centres,
    hat_weights,
    read_points,
)

ABSENT = -4 * COSINE_GAIN
"""Added to the cosines of points without a role: less than any cosine of another point."""
FAR = 1e6
"""A squared distance in cells at which each Gaussian is zero."""
FLAGS = 4
"""Planes of the flag of a mask, so that there are 56 maps, a multiple of four."""
SIDE_CELLS = 4


def arrange(weight: Tensor) -> Tensor:
    """Rearrange weights ``[O,53,1,1]`` for the maps of a `MaskDecoder` to those of `FoldedMaps`."""
    foreground, background, others, flag, masks = weight.split([HEADS, HEADS, 20, 1, 16], 1)
    points = torch.stack([foreground, background], 2).flatten(1, 2)
    unused = torch.zeros_like(flag).expand(-1, FLAGS - 1, -1, -1)
    return torch.cat([points, others, flag, unused, masks], 1)


class FoldedMaps(nn.Module):
    """Computes prompt maps ``[B*P,56,h,w]`` and query vectors ``[B*P,256]``.

    The maps are cosines with points (by head: foreground, background) and with the inside,
    Gaussians, box, flags of a mask, and the mask.
    """

    scales: Tensor

    def __init__(self, key: nn.Conv2d, query: nn.Conv2d) -> None:
        super().__init__()
        assert query.bias is not None
        self.key = key
        self.query_weight = nn.Parameter(query.weight.detach().flatten(1).t().contiguous())
        self.query_bias = query.bias
        self.unshuffle = convolution(torch.eye(16).reshape(16, 1, 4, 4), stride=4)
        scales = torch.tensor([-0.5 / sigma**2 for sigma in GAUSSIAN_SIGMAS])
        self.register_buffer("scales", scales.reshape(-1, 1, 1))

    def forward(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map tensors as ``MaskDecoder.prompt_maps`` does, with maps in another order."""
        rows, columns = (int(extent) for extent in embedding.shape[2:])
        points = read_points(coords, labels, CELL)
        roles = torch.stack([points.role(1), points.role(0)], 2)
        boxes = _boxes(points, rows, columns)
        masks, inside = self._masks(mask_input, boxes)
        cosines, focus = self._correlate(embedding, points, roles, inside.flatten(2))
        bumps = self._gaussians(points, roles, rows, columns)
        return torch.cat([cosines, bumps, boxes, masks], 2).flatten(0, 1), focus

    def _gaussians(self, points: Points, roles: Tensor, rows: int, columns: int) -> Tensor:
        """Return Gaussians ``[B,P,6,h,w]`` of the distance to the nearest point of a role."""
        across = (points.x.unsqueeze(-1) - centres(columns, points.x)).square()
        down = (points.y.unsqueeze(-1) - centres(rows, points.y)).square()
        down = down.unsqueeze(2) + FAR * (1 - roles).unsqueeze(-1)
        nearest = (down.unsqueeze(-1) + across.unsqueeze(2).unsqueeze(-2)).amin(3)
        return torch.exp(nearest.unsqueeze(3) * self.scales).flatten(2, 3)

    def _masks(self, mask_input: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return flags and masks ``[B,P,20,h,w]``, and each mask or else box ``[B,P,h,w]``.

        A zero mask is always appended before any reshape: ONNX Reshape reads a 0 as "copy".
        """
        batch, prompts, _, rows, columns = boxes.shape
        rows, columns, masks = int(rows), int(columns), mask_input.shape[1]
        size = SIDE_CELLS * rows, SIDE_CELLS * columns
        zero = torch.zeros(1, 1, 1, 1, 1)
        extended = torch.cat([mask_input, zero[0].expand(batch, 1, *size)], 1)
        squashed = torch.tanh(extended / MASK_SCALE).reshape(-1, 1, *size)
        cells = self.unshuffle(squashed).reshape(batch, -1, 16, rows, columns)[:, :masks]
        inside = torch.cat([torch.relu(cells.mean(2)), boxes[:, masks:, 0]], 1)
        flags = (zero + 1).expand(batch, masks, FLAGS, rows, columns)
        with_mask = torch.cat([flags, cells], 2)
        without = zero.expand(batch, prompts - masks, FLAGS + 16, rows, columns)
        return torch.cat([with_mask, without], 1), inside

    def _correlate(
        self, embedding: Tensor, points: Points, roles: Tensor, area: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compare the prompted cells with every cell: cosines ``[B,P,24,h,w]``, query vectors.

        ``area`` ``[B,P,h*w]`` weights the mask or the box.
        """
        batch, prompts = points.x.shape[:2]
        rows, columns = (int(extent) for extent in embedding.shape[2:])
        cells = rows * columns
        total = area.sum(2, keepdim=True)
        hats = hat_weights(points, rows, columns)[:, :, :-1]
        weights = torch.cat([hats, area.unsqueeze(2)], 2).reshape(batch, -1, cells)
        # Means of the embedding, then their projection: instead of means of projected cells.
        seen = weights @ embedding.flatten(2).transpose(1, 2)
        query = seen.reshape(batch, prompts, -1, EMBEDDING_CHANNELS) @ self.query_weight
        point_query = query[:, :, :-1] + self.query_bias
        area_query = (query[:, :, -1] + total * self.query_bias) / (total + 1e-3)
        unit = _unit(torch.cat([point_query, area_query.unsqueeze(2)], 2))
        key = self._key(embedding)
        points_best = (_point_rows(unit, roles).flatten(2, 4) @ key).reshape(
            batch, HEADS, prompts, 2, -1, cells
        )
        best = points_best.amax(4).transpose(1, 2).reshape(batch, prompts, -1, rows, columns)
        area_rows = torch.cat([unit[:, :, :, -1], unit[:, :, :, -1, :1] * 0], 3)
        inside = (area_rows @ key).transpose(1, 2).reshape(batch, prompts, -1, rows, columns)
        role = roles[:, :, 0, :-1].unsqueeze(-1)
        point_mean = (point_query * role).sum(2) / (role.sum(2) + 1e-3)
        return torch.cat([best, inside], 2), torch.cat([point_mean, area_query], 2).flatten(0, 1)

    def _key(self, embedding: Tensor) -> Tensor:
        """Return unit keys of the cells, and a one for offsets: ``[B,HEADS,HEAD_WIDTH+1,h*w]``."""
        batch = embedding.shape[0]
        cells = int(embedding.shape[2]) * int(embedding.shape[3])
        key = self.key(embedding).reshape(batch, HEADS, HEAD_WIDTH, cells)
        key = key * (1 / key.square().sum(2, keepdim=True).sqrt().clamp_min(1e-12))
        return torch.cat([key, torch.ones(1, 1, 1, 1).expand(batch, HEADS, 1, cells)], 2)


def _unit(query: Tensor) -> Tensor:
    """Return queries of the length `COSINE_GAIN`: ``[B,P,T,QUERY]`` to ``[B,HEADS,P,T,16]``."""
    query = query.reshape(query.shape[0], query.shape[1], -1, HEADS, HEAD_WIDTH)
    length = query.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-4)
    return (COSINE_GAIN * query / length).permute(0, 3, 1, 2, 4)


def _point_rows(unit: Tensor, roles: Tensor) -> Tensor:
    """Return queries with offsets ``[B,HEADS,P,2,T,HEAD_WIDTH+1]``, by role.

    The maximum of their products with the keys is that over the points with the role.  The last of
    them is zero if no point has the role, else it is less than all others.
    """
    present = roles.amax(3, keepdim=True)
    offset = torch.cat([ABSENT * (1 - roles[..., :-1]), ABSENT * present], 3)
    vectors = torch.cat([unit[:, :, :, :-1], unit[:, :, :, -1:] * 0], 3).unsqueeze(3)
    offsets = offset.unsqueeze(1).unsqueeze(-1).expand(-1, HEADS, -1, -1, -1, 1)
    return torch.cat([vectors.expand(-1, -1, -1, 2, -1, -1), offsets], 5)


def _boxes(points: Points, rows: int, columns: int) -> Tensor:
    """Return the maps of `prompt_maps.box_maps`, each as a product of a column and a row."""
    first, last = points.role(2), points.role(3)
    flag = (first.amax(2) * last.amax(2)).unsqueeze(-1).unsqueeze(-1)
    x0, y0, x1, y1 = (
        (role * value).sum(2).unsqueeze(-1)
        for role in (first, last)
        for value in (points.x, points.y)
    )
    left, right = centres(columns, x0) - x0, x1 - centres(columns, x0)
    top, bottom = centres(rows, y0) - y0, y1 - centres(rows, y0)
    one, tall = torch.ones_like(left), torch.ones_like(top)
    across = torch.stack([_within(left, right), _edge(left), _edge(right), one, one, one], 2)
    down = torch.stack([_within(top, bottom), tall, tall, _edge(top), _edge(bottom), tall], 2)
    return (flag * down).unsqueeze(-1) * across.unsqueeze(-2)


def _within(one: Tensor, other: Tensor) -> Tensor:
    return (one + 0.5).clamp(0, 1) * (other + 0.5).clamp(0, 1)


def _edge(side: Tensor) -> Tensor:
    return torch.tanh(side / BOX_SOFTNESS)

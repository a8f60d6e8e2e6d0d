"""Dense maps of a prompt's points, box and mask: the decoder's prompt encoder.

Frames: points and boxes are given in model pixels; here one unit is an embedding cell of 16
pixels, and cell ``i`` has its centre at ``i + 0.5``. Shapes: B images, P prompts, T points per
prompt, h x w cells. No map depends on absolute positions, so any grid size works.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

GAUSSIAN_SIGMAS = (0.7, 3.0, 10.0)
BOX_SOFTNESS = 2.0
MASK_SCALE = 4.0
"""Logits are squashed by tanh(logit / 4): values beyond about 8 carry no information."""


@dataclass
class Points:
    """Points and box corners of every prompt, in cells: x, y and label are ``[B,P,T]``."""

    x: Tensor
    y: Tensor
    label: Tensor

    def role(self, label: int) -> Tensor:
        """Return float ``[B,P,T]``: one where the point has this label."""
        return (self.label == label).float()


def read_points(coords: Tensor, labels: Tensor, cell: int) -> Points:
    """Convert ``[B,P,N,2]`` pixels and ``[B,P,N]`` labels; T = N + 1.

    One ignored point is appended, so that no reduction over T is empty at N = 0.
    """
    batch, prompts = coords.shape[0], coords.shape[1]
    origin = torch.zeros(1, 1, 1, 2, dtype=coords.dtype, device=coords.device)
    ignored = torch.full((1, 1, 1), -1.0, dtype=labels.dtype, device=labels.device)
    coords = torch.cat([coords, origin.expand(batch, prompts, 1, 2)], 2) / cell
    labels = torch.cat([labels, ignored.expand(batch, prompts, 1)], 2)
    return Points(coords[..., 0], coords[..., 1], labels)


def centres(count: int, like: Tensor) -> Tensor:
    """Return cell centres ``[count]`` in cells."""
    return torch.arange(count, dtype=torch.float32, device=like.device) + 0.5


def hat_weights(points: Points, rows: int, columns: int) -> Tensor:
    """Return bilinear weights ``[B,P,T,h*w]``: a matmul with these samples a map at the points."""
    x = points.x.clamp(0.5, columns - 0.5).unsqueeze(-1)
    y = points.y.clamp(0.5, rows - 0.5).unsqueeze(-1)
    across = torch.relu(1 - (x - centres(columns, x)).abs())
    down = torch.relu(1 - (y - centres(rows, y)).abs())
    return (down.unsqueeze(-1) * across.unsqueeze(-2)).flatten(3)


def gaussian_maps(points: Points, label: int, rows: int, columns: int) -> Tensor:
    """Return the maximum of Gaussians around the points of one label: ``[B,P,3,h,w]``."""
    across = (points.x.unsqueeze(-1) - centres(columns, points.x)).square()
    down = (points.y.unsqueeze(-1) - centres(rows, points.y)).square()
    present = points.role(label).unsqueeze(-1)
    maps = [
        (
            (present * torch.exp(down * scale)).unsqueeze(-1)
            * torch.exp(across * scale).unsqueeze(-2)
        )
        for scale in (-0.5 / sigma**2 for sigma in GAUSSIAN_SIGMAS)
    ]
    return torch.stack([bump.amax(2) for bump in maps], 2)


def box_maps(points: Points, rows: int, columns: int) -> Tensor:
    """Return inside, four tanh edge distances and a flag: ``[B,P,6,h,w]``, zero without a box."""
    first, last = points.role(2), points.role(3)
    flag = (first.amax(2) * last.amax(2)).unsqueeze(-1).unsqueeze(-1)
    x0, y0, x1, y1 = (
        (role * value).sum(2).unsqueeze(-1)
        for role, value in (
            (first, points.x),
            (first, points.y),
            (last, points.x),
            (last, points.y),
        )
    )
    across, down = centres(columns, x0), centres(rows, y0)
    sides = [(across - x0).unsqueeze(-2), (x1 - across).unsqueeze(-2)]
    sides += [(down - y0).unsqueeze(-1), (y1 - down).unsqueeze(-1)]
    full = torch.zeros(rows, columns, device=x0.device)
    inside = full + 1
    for side in sides:
        inside = inside * (side + 0.5).clamp(0, 1)
    maps = [inside, *(torch.tanh(side / BOX_SOFTNESS) + full for side in sides), full + 1]
    return torch.stack([flag * one for one in maps], 2)


def mask_maps(mask_input: Tensor, prompts: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return logits ``[B,M,4h,4w]`` as ``[B,P,16,h,w]`` and flags ``[B,P,1,1]``; M may be 0.

    A zero mask is always appended before any reshape: ONNX Reshape reads a 0 as "copy".
    """
    batch, masks, side = mask_input.shape[0], mask_input.shape[1], 4 * rows
    empty = torch.zeros(1, 1, side, side, dtype=mask_input.dtype, device=mask_input.device)
    extended = torch.cat([mask_input, empty.expand(batch, 1, side, side)], 1)
    squashed = torch.tanh(extended / MASK_SCALE).reshape(-1, 1, side, side)
    cells = functional.pixel_unshuffle(squashed, 4).reshape(batch, -1, 16, rows, rows)
    with_mask = cells[:, :masks]
    without_mask = (
        empty[:, :, :rows, :rows].unsqueeze(2).expand(batch, prompts - masks, 16, rows, rows)
    )
    one = torch.ones(1, 1, 1, 1, device=mask_input.device)
    flags = [one.expand(batch, masks, 1, 1), (one * 0).expand(batch, prompts - masks, 1, 1)]
    return torch.cat([with_mask, without_mask], 1), torch.cat(flags, 1)

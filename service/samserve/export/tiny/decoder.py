"""The mask decoder: prompt maps over the embedding grid, a small U-Net, four masks per prompt.

A convolutional decoder instead of SAM's two-way transformer: it learns to select an object in
minutes on a CPU and decodes a prompt in milliseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samserve.export.tiny.iou import TOKENS, IouHead, MaskIouHead
from samserve.export.tiny.layers import CELL, EMBEDDING_CHANNELS, PromptBlock
from samserve.export.tiny.prompt_maps import (
    Points,
    box_maps,
    gaussian_maps,
    hat_weights,
    mask_maps,
    read_points,
)

HEADS, HEAD_WIDTH = 8, 16
QUERY = HEADS * HEAD_WIDTH
SUBCELLS = 16
"""Low-res mask pixels in one embedding cell: 4 x 4."""
BASIS = 12
"""Sub-cell patterns per cell, computed from the image and combined by a prompt."""
LOGIT_GAIN = 8.0
"""Logits reach about 8, and Adam changes a weight by its rate per step: saves hundreds of steps."""
COSINE_GAIN = 3.0
MAP_CHANNELS = 3 * HEADS + 3 + 3 + 6 + 1 + SUBCELLS
WIDTHS = (48, 80, 112)


class MaskDecoder(nn.Module):
    """Decodes P prompts on each of B images, independently of each other."""

    def __init__(self, iou_head: type[IouHead | MaskIouHead] = IouHead) -> None:
        super().__init__()
        fine, middle, deep = WIDTHS
        self.feature = nn.Conv2d(EMBEDDING_CHANNELS, fine, 1)
        self.key = nn.Conv2d(EMBEDDING_CHANNELS, QUERY, 1)
        self.query = nn.Conv2d(EMBEDDING_CHANNELS, QUERY, 1)
        self.basis = nn.Conv2d(EMBEDDING_CHANNELS, BASIS * SUBCELLS, 1)
        self.fuse = nn.Conv2d(MAP_CHANNELS, fine, 1)
        self.down32 = nn.Conv2d(fine, middle, 3, 2, 1)
        self.block32 = PromptBlock(middle)
        self.down16 = nn.Conv2d(middle, deep, 3, 2, 1)
        self.focus = nn.Linear(2 * QUERY, deep)
        self.context = nn.Linear(deep, deep)
        self.block16 = PromptBlock(deep)
        self.wide16 = PromptBlock(deep, spread=2)
        self.up32 = nn.Conv2d(deep, middle, 1)
        self.join32 = PromptBlock(middle)
        self.up64 = nn.Conv2d(middle, fine, 1)
        self.join64 = PromptBlock(fine)
        self.mask_head = nn.Conv2d(fine + MAP_CHANNELS, TOKENS * (SUBCELLS + BASIS), 1)
        # A prompt must have an effect beside the image features, and cosines are small.
        nn.init.normal_(self.fuse.weight, std=0.25)
        # Start at the rate of foreground, so the first steps need not learn that masks are small.
        nn.init.normal_(self.mask_head.weight, std=0.01)
        nn.init.constant_(self.mask_head.bias, -2.0 / LOGIT_GAIN)  # type: ignore[arg-type]
        self.iou_head = iou_head(fine, deep)

    def forward(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``low_res_logits`` ``[B,P,4,4h,4w]`` and ``predicted_iou`` ``[B,P,4]``.

        ``embedding`` ``[B,256,h,w]``, ``coords`` ``[B,P,N,2]`` in model pixels, ``labels``
        ``[B,P,N]``, ``mask_input`` ``[B,M,4h,4w]`` logits for the first M prompts.
        """
        batch, prompts = coords.shape[0], coords.shape[1]
        rows, columns = embedding.shape[2], embedding.shape[3]
        maps, focus = self.prompt_maps(embedding, coords, labels, mask_input)
        image = self.feature(embedding).unsqueeze(1)
        image = image.expand(batch, prompts, WIDTHS[0], rows, columns).flatten(0, 1)
        fine, deep = self.reason(torch.relu(image + self.fuse(maps)), focus)
        # The head has the prompt maps too: from the first step, a box is nearly its mask.
        cells = self.cell_logits(torch.cat([fine, maps], 1), embedding, batch)
        iou = self.iou_head(fine, deep, cells).reshape(batch, -1, TOKENS)
        planes = cells.flatten(1, 2).reshape(-1, TOKENS * SUBCELLS, rows, columns)
        logits = functional.pixel_shuffle(planes, 4)
        return logits.reshape(batch, -1, TOKENS, 4 * rows, 4 * columns), iou

    def prompt_maps(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return prompt maps ``[B*P,MAP_CHANNELS,h,w]`` and query vectors ``[B*P,256]``."""
        rows, columns = embedding.shape[2], embedding.shape[3]
        points = read_points(coords, labels, CELL)
        boxes = box_maps(points, rows, columns)
        masks, has_mask = mask_maps(mask_input, coords.shape[1], rows)
        inside = torch.relu(masks.mean(2)) * has_mask + boxes[:, :, 0] * (1 - has_mask)
        correlations, focus = self.correlate(embedding, points, inside)
        flag = has_mask.unsqueeze(2).expand(-1, -1, 1, rows, columns)
        bumps = [gaussian_maps(points, label, rows, columns) for label in (1, 0)]
        return torch.cat([correlations, *bumps, boxes, flag, masks], 2).flatten(0, 1), focus

    def correlate(self, embedding: Tensor, points: Points, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the prompted cells with every cell.

        ``inside`` ``[B,P,h,w]`` weights the box or the previous mask. Returns cosines
        ``[B,P,3*HEADS,h,w]`` for foreground points, background points and the inside, and the mean
        foreground and inside queries ``[B*P,2*QUERY]``.
        """
        batch, prompts = points.x.shape[:2]
        rows, columns = embedding.shape[2], embedding.shape[3]
        key = self.key(embedding).reshape(batch, HEADS, HEAD_WIDTH, rows * columns)
        key = functional.normalize(key, dim=2)
        source = self.query(embedding).flatten(2).transpose(1, 2)
        area = inside.flatten(2)
        area = area / (area.sum(2, keepdim=True) + 1e-3)
        weights = torch.cat([hat_weights(points, rows, columns), area.unsqueeze(2)], 2)
        query = (weights.flatten(1, 2) @ source).reshape(batch, -1, HEADS, HEAD_WIDTH)
        unit = COSINE_GAIN * functional.normalize(query, dim=3, eps=1e-4).transpose(1, 2)
        cosine = (unit @ key).reshape(batch, HEADS, prompts, -1, rows * columns)
        point_cosines = cosine[:, :, :, :-1]
        strongest = [_strongest(point_cosines, points.role(label)) for label in (1, 0)]
        maps = torch.cat([*strongest, cosine[:, :, :, -1]], 1)
        maps = maps.reshape(batch, 3 * HEADS, -1, rows, columns).transpose(1, 2)
        vectors = query.reshape(batch, prompts, -1, QUERY)
        role = points.role(1).unsqueeze(-1)
        point_query = (vectors[:, :, :-1] * role).sum(2) / (role.sum(2) + 1e-3)
        return maps, torch.cat([point_query, vectors[:, :, -1]], 2).flatten(0, 1)

    def reason(self, fine: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """Return the U-Net's fine features ``[B*P,48,h,w]`` and a global vector ``[B*P,112]``."""
        middle = self.block32(torch.relu(self.down32(fine)))
        deep = torch.relu(self.down16(middle))
        shift = self.focus(focus) + self.context(deep.mean((2, 3)))
        deep = self.wide16(self.block16(torch.relu(deep + shift.unsqueeze(-1).unsqueeze(-1))))
        middle = self.join32(torch.relu(middle + _double(self.up32(deep))))
        fine = self.join64(torch.relu(fine + _double(self.up64(middle))))
        return fine, deep.mean((2, 3))

    def cell_logits(self, state: Tensor, embedding: Tensor, batch: int) -> Tensor:
        """Return the logits per token, sub-cell and cell: ``[B*P,4,16,h,w]``.

        BASIS sub-cell patterns per cell are computed once per image; a prompt only combines them.
        This gives edges finer than the 64 x 64 grid at almost no cost.
        """
        rows, columns = state.shape[2], state.shape[3]
        head = self.mask_head(state).reshape(-1, TOKENS, SUBCELLS + BASIS, rows * columns)
        patterns = self.basis(embedding).reshape(batch, BASIS, SUBCELLS, rows * columns)
        mix = head[:, :, SUBCELLS:].reshape(batch, -1, BASIS, rows * columns)
        detail = mix.permute(0, 3, 1, 2) @ patterns.permute(0, 3, 1, 2)
        detail = detail.permute(0, 2, 3, 1).reshape(-1, TOKENS, SUBCELLS, rows * columns)
        logits: Tensor = LOGIT_GAIN * (head[:, :, :SUBCELLS] + detail)
        return logits.reshape(-1, TOKENS, SUBCELLS, rows, columns)


def _strongest(cosine: Tensor, role: Tensor) -> Tensor:
    """Return the maximum over the points with a role: ``[B,H,P,T,hw]`` to ``[B,H,P,hw]``."""
    present = role.unsqueeze(1).unsqueeze(-1)
    best = (cosine - 4 * COSINE_GAIN * (1 - present)).amax(3)
    return best * present.amax(3)


def _double(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")

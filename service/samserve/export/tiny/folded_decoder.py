"""The decoder as it is exported: `MaskDecoder` in fewer operations on less data.

It computes the same function to rounding, with the same weights; training keeps the plain form.
What differs:

- Queries are read from the embedding itself, not from a projection of all its cells.
- Convolutions of concatenated features are sums of convolutions, which ONNX Runtime adds up in
  place; channels are padded to multiples of four, else it cannot use its blocked layout.
- Cells come first where sub-cell patterns are combined, so that no plane is transposed.
- What does not depend on a mask is convolved once per prompt (`folded_iou`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samserve.export.tiny.decoder import BASIS, LOGIT_GAIN, SUBCELLS, WIDTHS, MaskDecoder
from samserve.export.tiny.folded_iou import FoldedIouHead
from samserve.export.tiny.folded_maps import FoldedMaps, arrange
from samserve.export.tiny.iou import TOKENS
from samserve.export.tiny.layers import PromptBlock, convolution, scaling


class FoldedBlock(nn.Module):
    """`PromptBlock` with the scales and offsets of its norm as a convolution with its ReLU."""

    ones: Tensor
    zeros: Tensor

    def __init__(self, block: PromptBlock) -> None:
        super().__init__()
        self.first, self.second = block.first, block.second
        self.groups, self.eps = block.norm.num_groups, block.norm.eps
        self.register_buffer("ones", torch.ones(self.groups))
        self.register_buffer("zeros", torch.zeros(self.groups))
        self.affine = scaling(block.norm.weight, block.norm.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Refine ``[B*P,C,h,w]`` features, shape kept."""
        convolved = self.first(features)
        channels, rows, columns = (int(extent) for extent in convolved.shape[1:])
        size = channels // self.groups * rows * columns
        groups = convolved.reshape(-1, self.groups, size)
        normal = functional.instance_norm(groups, None, None, self.ones, self.zeros, eps=self.eps)
        normal = self.affine(normal.reshape(-1, channels, rows, columns))
        return torch.relu(features + self.second(torch.relu(normal)))


class FoldedDecoder(nn.Module):
    """Decodes as the `MaskDecoder` does of which it has the weights."""

    def __init__(self, plain: MaskDecoder) -> None:
        super().__init__()
        fine, middle, _ = WIDTHS
        self.maps = FoldedMaps(plain.key, plain.query)
        self.feature = plain.feature
        self.fuse = convolution(arrange(plain.fuse.weight), plain.fuse.bias)
        self.down32, self.down16 = plain.down32, plain.down16
        self.focus, self.context = plain.focus, plain.context
        self.up32, self.up64 = plain.up32, plain.up64
        self.block32, self.block16 = FoldedBlock(plain.block32), FoldedBlock(plain.block16)
        self.wide16 = FoldedBlock(plain.wide16)
        self.join32, self.join64 = FoldedBlock(plain.join32), FoldedBlock(plain.join64)
        # Convolutions by one: an addition to the output of a convolution needs no pass of its own.
        self.one_image = scaling(torch.ones(fine))
        self.one32, self.one64 = scaling(torch.ones(middle)), scaling(torch.ones(fine))
        self._fold_mask_head(plain.mask_head, plain.basis)
        self.iou_head = FoldedIouHead(plain.iou_head)

    def _fold_mask_head(self, head: nn.Conv2d, basis: nn.Conv2d) -> None:
        """Separate the mask head's weights by input and by output; logits include their gain."""
        fine = WIDTHS[0]
        assert head.bias is not None
        assert basis.bias is not None
        weight = head.weight.reshape(TOKENS, SUBCELLS + BASIS, -1, 1, 1)
        bias = head.bias.reshape(TOKENS, SUBCELLS + BASIS)
        own = LOGIT_GAIN * weight[:, :SUBCELLS].flatten(0, 1)
        mix = weight[:, SUBCELLS:].flatten(0, 1)
        self.own_fine = convolution(own[:, :fine], LOGIT_GAIN * bias[:, :SUBCELLS].flatten())
        self.own_maps = convolution(arrange(own[:, fine:]))
        self.mix_fine = convolution(mix[:, :fine], bias[:, SUBCELLS:].flatten())
        self.mix_maps = convolution(arrange(mix[:, fine:]))
        self.basis = convolution(LOGIT_GAIN * basis.weight, LOGIT_GAIN * basis.bias)

    def forward(
        self, embedding: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map tensors as ``MaskDecoder.forward`` does."""
        batch, prompts = coords.shape[0], coords.shape[1]
        rows, columns = (int(extent) for extent in embedding.shape[2:])
        maps, focus = self.maps(embedding, coords, labels, mask_input)
        image = self.feature(embedding).unsqueeze(1)
        image = image.expand(batch, prompts, WIDTHS[0], rows, columns).flatten(0, 1)
        fine, deep = self.reason(torch.relu(self.fuse(maps) + self.one_image(image)), focus)
        cells = self.cell_logits(fine, maps, embedding, coords)
        iou = self.iou_head(fine, deep, cells).reshape(batch, prompts, TOKENS)
        logits = cells.reshape(batch, rows, columns, prompts, TOKENS, 4, 4)
        logits = logits.permute(0, 3, 4, 1, 5, 2, 6)
        return logits.reshape(batch, prompts, TOKENS, 4 * rows, 4 * columns), iou

    def reason(self, fine: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """Return fine features and a global vector as ``MaskDecoder.reason`` does."""
        middle = self.block32(torch.relu(self.down32(fine)))
        deep = torch.relu(self.down16(middle))
        shift = self.focus(focus) + self.context(_mean(deep))
        deep = torch.relu(deep + shift.reshape(-1, WIDTHS[2], 1, 1))
        deep = self.wide16(self.block16(deep))
        middle = self.join32(torch.relu(middle + self.one32(_double(self.up32(deep)))))
        fine = self.join64(torch.relu(fine + self.one64(_double(self.up64(middle)))))
        return fine, _mean(deep)

    def cell_logits(self, fine: Tensor, maps: Tensor, embedding: Tensor, coords: Tensor) -> Tensor:
        """Return the logits ``[B,h*w,P*4,16]`` per cell, prompt, token and sub-cell."""
        batch, prompts = coords.shape[0], coords.shape[1]
        cells = int(embedding.shape[2]) * int(embedding.shape[3])

        def cells_first(planes: Tensor, each: int) -> Tensor:
            rows = planes.permute(0, 2, 3, 1).reshape(batch, prompts, cells, TOKENS * each)
            return rows.transpose(1, 2).reshape(batch, cells, -1, each)

        own = cells_first(self.own_fine(fine) + self.own_maps(maps), SUBCELLS)
        mix = cells_first(self.mix_fine(fine) + self.mix_maps(maps), BASIS)
        patterns = self.basis(embedding).permute(0, 2, 3, 1).reshape(-1, cells, BASIS, SUBCELLS)
        logits: Tensor = mix @ patterns + own
        return logits


def _mean(features: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(features, 1).flatten(1)


def _double(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")

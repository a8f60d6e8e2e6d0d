"""Mask prompts as embeddings of the cells: the same in all families."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor


def dense_cells(
    masks: Tensor, prompts: int, downscaled: Callable[[Tensor], Tensor], no_mask: Tensor
) -> Tensor:
    """Return what is added to the cells of P prompts: ``[B,P,K,C]``, or ``[B,1,1,C]`` if M is 0.

    ``masks`` ``[B,M,s,s]`` are the mask prompts of the first M prompts, which *downscaled* maps
    from ``[n,1,s,s]`` to ``[n,C,g,g]``; ``no_mask`` ``[1,C]`` is added for the others.
    """
    batch, given = masks.shape[0], masks.shape[1]
    # These are the same for all inputs of a traced graph.
    side, width = int(masks.shape[2]), no_mask.shape[1]
    cells = (side // 4) ** 2
    # M first: ONNX's Reshape interprets a 0 as "keep this axis", which is right for the first one.
    dense = downscaled(masks.transpose(0, 1).reshape(given * batch, 1, side, side))
    embedded = dense.reshape(given, batch, width, cells).permute(1, 0, 3, 2)
    # By arithmetic: a condition would be fixed in a traced graph, where M and P are tensors.
    some = torch.as_tensor(given).clamp(max=1)
    groups = cast("int", 1 + (torch.as_tensor(prompts) - 1) * some)
    length = cast("int", 1 + (cells - 1) * some)
    absent = no_mask.reshape(1, 1, width).expand(batch, (groups - given) * length, width)
    rows = torch.cat([embedded.flatten(1, 2), absent], 1)
    return rows.reshape(batch, groups, length, width)

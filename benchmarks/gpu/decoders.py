"""The mask decoder of SAM: plain in transformers, and rewritten in the export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import networks
from benchmarks.gpu.device import DTYPES, Device
from benchmarks.gpu.rows import Row, compare, operations

TRAFFIC_MIB = 48
"""Activations that a prompt moves in two bytes per value, computed from the shapes of a SAM."""

EVERYTHING = -1e4
"""A threshold of the predicted IoU that all prompts reach, within the range of float16."""


class Decoders:
    """Both decoders of a pair for prompts on one image, with the same inputs.

    The prompts' embeddings are computed in float32, since bfloat16 cannot hold their coordinates.
    """

    def __init__(self, pair: networks.Pair, embedding: Tensor) -> None:
        self.plain, self.ours = pair.plain.mask_decoder, pair.ours.mask_decoder
        self.prompts = pair.ours.prompt_encoder
        # Contiguous clones: the prompt encoder keeps float32 while the decoders are converted.
        self.embedding = embedding.float()
        self.wide = pair.plain.get_image_wide_positional_embeddings().float()
        self.places = self.prompts.dense_positions()
        self.none = self.prompts.no_mask_embed.weight.float().reshape(1, -1, 1, 1)
        self.dtype = torch.float32

    def to(self, dtype: torch.dtype) -> None:
        """Convert both decoders; their inputs are converted with each call."""
        self.dtype = dtype
        self.plain.to(dtype)
        self.ours.to(dtype)

    def sparse(self, points: Tensor) -> Tensor:
        """Return the tokens of foreground points ``[P,2]`` in model pixels: ``[1,P,2,C]``."""
        padding = torch.zeros_like(points)
        coords = torch.stack([points, padding], 1).unsqueeze(0)
        labels = torch.tensor([1.0, -1.0]).expand(1, len(points), 2)
        return self.prompts.embed_points(coords, labels)

    def plainly(self, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[1,P,3,L,L]`` and predicted IoU ``[1,P,3]`` of the plain decoder."""
        kind = self.dtype
        result: Any = self.plain(
            image_embeddings=self.embedding.to(kind),
            image_positional_embeddings=self.wide.to(kind),
            sparse_prompt_embeddings=sparse.to(kind),
            dense_prompt_embeddings=self.none.expand_as(self.embedding).to(kind),
            multimask_output=True,
        )
        return result[0], result[1]

    def rewritten(self, sparse: Tensor, threshold: float = EVERYTHING) -> tuple[Tensor, Tensor]:
        """Return the same; logits are zeros where no predicted IoU reaches the threshold."""
        kind = self.dtype
        outputs = self.ours.output_tokens()
        tokens = torch.cat([outputs.expand(1, sparse.shape[1], -1, -1), sparse.to(kind)], 2)
        cells = (self.embedding + self.none).flatten(2).transpose(1, 2).unsqueeze(1).to(kind)
        # Mask 0 is not among those that a search uses.
        limits = torch.tensor([[float("inf"), threshold, threshold, threshold]], dtype=kind)
        with default_dtype(kind):
            logits, iou = self.ours(cells, self.places.to(kind), tokens, limits)
        return logits[:, :, 1:], iou[:, :, 1:]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors in a type, since the export's modules are written for float32."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def grid_points(count: int, side: int, height: float = 1.0) -> Tensor:
    """Return about *count* points of a square grid, in pixels: ``[count,2]``, (x, y)."""
    edge = max(1, round(count**0.5))
    while edge * edge < count:
        edge += 1
    centres = (torch.arange(edge) + 0.5) / edge * side
    rows, columns = torch.meshgrid(centres * height, centres, indexing="ij")
    return torch.stack([columns, rows], 2).reshape(-1, 2)[:count]


def traffic_gib(grid: int, prompts: int, dtype: str) -> float | None:
    """Return the GiB that prompts move at least; None for a grid that is not SAM's."""
    return prompts * TRAFFIC_MIB / 1024 * (2 if dtype == "fp32" else 1) if grid == 64 else None


def measure(device: Device, variant: str, dtypes: list[str], counts: list[int]) -> list[Row]:
    """Measure both decoders for every count of prompts; parity at each, against plain in fp32."""
    with torch.no_grad(), torch.device(device.name):
        pair = networks.sam(variant, device.name)
        side = networks.side_of(variant)
        torch.manual_seed(networks.SEED)
        embedding = torch.randn(1, pair.ours.config.channels, side // 16, side // 16)
        decoders = Decoders(pair, embedding)
        expected: dict[int, tuple[Tensor, Tensor]] = {}
        rows = []
        for name in dtypes:
            decoders.to(DTYPES[name])
            for count in counts:
                rows += _both(device, decoders, name, count, expected)
        return rows


def _both(
    device: Device,
    decoders: Decoders,
    dtype: str,
    count: int,
    expected: dict[int, tuple[Tensor, Tensor]],
) -> list[Row]:
    sparse = decoders.sparse(grid_points(count, decoders.ours.grid * 16))
    rows = []
    for title, decode in (("plain", decoders.plainly), ("rewritten", decoders.rewritten)):
        row = Row("decoder", "sam", title, dtype, prompts=count)
        # The same network for a prompt, so the count of operations is proportional.
        one = sparse[:, :1]
        row.tflop = count * operations(lambda one=one: decoders.plainly(one))  # type: ignore[misc]
        row.gib = traffic_gib(decoders.ours.grid, count, dtype)
        try:
            found = decode(sparse)
            if dtype == "fp32" and title == "plain":
                expected[count] = found
            if count in expected:
                compare(row, found, expected[count])
            del found
            row.timing = device.measure(lambda: decode(sparse))  # noqa: B023
        except RuntimeError as error:
            row.note = (str(error).splitlines() or [type(error).__name__])[0][:120]
        device.free()
        rows.append(row)
    return rows

"""AutoMask end to end: encode once, decode a grid of points in runs, filter, suppress duplicates.

Run lengths and crops are not part of it.  The plain way upsamples all masks of a run and filters
afterwards, as the reference generator does; the other one upsamples what passes the filter of
predicted IoU only.  Seeded weights give noise for masks, whose boxes mostly fill the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import networks
from benchmarks.gpu.decoders import Decoders, grid_points, traffic_gib
from benchmarks.gpu.device import DTYPES, Device
from benchmarks.gpu.encoders import fused_attention
from benchmarks.gpu.rows import Row, operations

OFFSET, NMS_IOU = 1.0, 0.7
"""Those of the reference generator."""


@dataclass(frozen=True)
class Search:
    """An AutoMask: points, size of the image, prompts per run, thresholds."""

    points: int = 1024
    size: tuple[int, int] = (1200, 1800)
    plain_run: int = 64
    run: int = 256
    iou: float = 0.0
    stability: float = 0.0


@dataclass(frozen=True)
class Candidates:
    """Masks by number of the prompt and mask, with boxes XYXY ``[n,4]`` and scores ``[n]``."""

    keys: Tensor
    boxes: Tensor
    iou: Tensor
    stability: Tensor

    def common(self, others: Candidates) -> float:
        """Return the share of masks that both have, of those that either has."""
        ours, theirs = set(self.keys.tolist()), set(others.keys.tolist())
        return len(ours & theirs) / max(len(ours | theirs), 1)


class Generator:
    """Searches with the two networks of a pair; ``plain`` chooses which."""

    def __init__(self, pair: networks.Pair, side: int, search: Search) -> None:
        self.pair, self.side, self.search = pair, side, search
        torch.manual_seed(networks.SEED)
        self.images = torch.randn(1, 3, side, side)
        # Weights are converted later; positions are taken from those in float32.
        self.decoders = Decoders(pair, self.encode(plain=True))
        self.points = grid_points(search.points, side, search.size[0] / search.size[1])

    def to(self, dtype: torch.dtype) -> None:
        """Convert all networks but the prompt encoder."""
        self.decoders.to(dtype)
        self.pair.plain.vision_encoder.to(dtype)
        self.pair.ours.image_encoder.to(dtype)

    def encode(self, *, plain: bool) -> Tensor:
        """Return the embedding of the image."""
        kind = next(self.pair.ours.image_encoder.parameters()).dtype
        images = self.images.to(kind)
        if plain:
            output: Tensor = self.pair.plain.vision_encoder(images).last_hidden_state
            return output
        embedding: Tensor = self.pair.ours.image_encoder(images)
        return embedding

    def tflop(self) -> float:
        """Return the 10^12 operations of the plain networks; upsampling is not counted."""
        sparse = self.decoders.sparse(self.points[:1])
        prompt = operations(lambda: self.decoders.plainly(sparse))
        return operations(lambda: self.encode(plain=True)) + self.search.points * prompt

    def candidates(self, *, plain: bool) -> Candidates:
        """Encode, decode and filter; masks themselves are dropped after their boxes are known."""
        self.decoders.embedding = self.encode(plain=plain).float()
        size = self.search.plain_run if plain else self.search.run
        found, first = [], 0
        for points in self.points.split(size):
            logits, iou, keys = self._decode(points, plain=plain)
            found.append(self._filtered(logits, iou, keys + 3 * first))
            first += len(points)
        return Candidates(*(torch.cat(each) for each in zip(*found, strict=True)))

    def results(self, *, plain: bool) -> list[int]:
        """Return the numbers of the masks after suppression."""
        found = self.candidates(plain=plain)
        kept = suppress(found.boxes, found.iou)
        return [int(key) for key in found.keys[kept]]

    def _decode(self, points: Tensor, *, plain: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, in the image's size where plain, scores and numbers of masks."""
        sparse = self.decoders.sparse(points)
        if plain:
            logits, iou = self.decoders.plainly(sparse)
            scores = iou.flatten()
            return self._upsampled(logits.flatten(0, 2)), scores, torch.arange(len(scores))
        logits, iou = self.decoders.rewritten(sparse, self.search.iou)
        scores = iou.flatten()
        return logits.flatten(0, 2), scores, torch.arange(len(scores))

    def _filtered(
        self, logits: Tensor, iou: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        passed = (iou >= self.search.iou).nonzero().squeeze(1)
        logits, iou, keys = logits[passed], iou[passed], keys[passed]
        if logits.shape[1:] != self.search.size:
            logits = self._upsampled(logits)
        scores = stability(logits)
        # The quotient of two counts: equal wherever both counts are.
        passed = (scores >= self.search.stability).nonzero().squeeze(1)
        boxes = boxes_of(logits[passed] > 0)
        return keys[passed], boxes, iou[passed].float(), scores[passed]

    def _upsampled(self, logits: Tensor) -> Tensor:
        """Upsample ``[n,L,L]`` to the frame, cut off its padding, and resize to the image."""
        height, width = self.search.size
        used = round(self.side * height / width)
        if not len(logits):
            return logits.new_zeros(0, height, width)
        frame = _resized(logits.unsqueeze(1), (self.side, self.side))[:, :, :used]
        return _resized(frame, self.search.size).squeeze(1)


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(planes, size, mode="bilinear", align_corners=False)


def stability(logits: Tensor) -> Tensor:
    """Return the stability scores of masks ``[n,h,w]``."""
    inner = (logits > OFFSET).sum((1, 2), dtype=torch.int32)
    outer = (logits > -OFFSET).sum((1, 2), dtype=torch.int32)
    return inner / outer.clamp(min=1).float()


def boxes_of(masks: Tensor) -> Tensor:
    """Return boxes XYXY of masks ``[n,h,w]``, the last row and column included: ``[n,4]``."""
    sides = []
    for axis in (1, 2):
        line = masks.any(axis).to(torch.uint8)
        last = line.shape[1] - 1 - line.flip(1).argmax(1)
        sides.append((line.argmax(1), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()


def suppress(boxes: Tensor, scores: Tensor, limit: float = NMS_IOU) -> Tensor:
    """Return the indices of boxes that no better one overlaps by more than *limit*."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = (areas[:, None] + areas[None] - shared).clamp(min=1e-6)
    overlaps = (shared / union > limit).cpu().numpy()
    alive = [True] * len(boxes)
    for index in range(len(boxes)):
        if alive[index]:
            for other in overlaps[index, index + 1 :].nonzero()[0]:
                alive[index + 1 + int(other)] = False
    kept: Tensor = order[torch.tensor(alive, dtype=torch.bool)]
    return kept


def measure(device: Device, variant: str, dtypes: list[str], search: Search) -> list[Row]:
    """Measure both ways; half of the masks pass each filter of the plain search in fp32."""
    with torch.no_grad(), torch.device(device.name), fused_attention():
        pair = networks.sam(variant, device.name)
        generator = Generator(pair, networks.side_of(variant), replace(search, iou=-1e4))
        everything = generator.candidates(plain=True)
        limit = float(everything.iou.median())
        passed = everything.stability[everything.iou >= limit]
        generator.search = replace(search, iou=limit, stability=float(passed.median()))
        expected = generator.candidates(plain=True)
        tflop, rows = generator.tflop(), []
        for name in dtypes:
            generator.to(DTYPES[name])
            gib = traffic_gib(pair.ours.config.grid, search.points, name)
            for title, plain in (("plain", True), ("rewritten", False)):
                row = Row("automask", variant, title, name, search.points, tflop=tflop, gib=gib)
                _fill(row, device, lambda plain=plain: generator.results(plain=plain))  # type: ignore[misc]
                found = generator.candidates(plain=plain)
                row.note = row.note or (
                    f"{len(found.keys)} of {3 * search.points} masks pass, "
                    f"{found.common(expected):.1%} in common"
                )
                rows.append(row)
        return rows


def _fill(row: Row, device: Device, call: Callable[[], list[int]]) -> None:
    try:
        row.timing = device.measure(call, calls=5)
        row.note = ""
    except RuntimeError as error:
        row.note = (str(error).splitlines() or [type(error).__name__])[0][:120]
    device.free()

"""Image encoders: plain, with folded relative positions in fused attention, and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from samserve.export.sam import image_encoder
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import networks
from benchmarks.gpu.device import DTYPES, Device
from benchmarks.gpu.rows import Row, compare, operations

Encoder = Callable[[Tensor], Tensor]


def fused(self: image_encoder.Attention, cells: Tensor) -> Tensor:
    """Compute `Attention.forward` with torch's fused attention instead of an explicit softmax."""
    side, heads, width = self.side, self.heads, self.head_width
    split = self.qkv(cells).reshape(-1, side * side, 3, heads, width)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    query_rows, query_columns = self.position_scores(query)
    query = torch.cat([query * width**-0.5, query_rows, query_columns], 3)
    positions = image_encoder.one_hot_positions(side).to(key.dtype)
    key = torch.cat([key, positions.expand(*key.shape[:3], 2 * side)], 3)
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    result: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, side, side, heads * width))
    return result


@contextmanager
def fused_attention() -> Iterator[None]:
    """Replace the attention of the export's encoder by `fused`."""
    forward = image_encoder.Attention.forward
    image_encoder.Attention.forward = fused  # type: ignore[method-assign]
    try:
        yield
    finally:
        image_encoder.Attention.forward = forward  # type: ignore[method-assign]


def measure(
    device: Device, variant: str, dtypes: list[str], *, compiler: str | None = None
) -> list[Row]:
    """Measure an encoder of `networks.VITS` or `networks.HIERAS` in all *dtypes*.

    With *compiler*, a backend of `torch.compile`, only the compiled variant is measured.
    """
    with torch.no_grad(), torch.device(device.name), fused_attention():
        side = networks.side_of(variant)
        torch.manual_seed(networks.SEED)
        images = torch.randn(1, 3, side, side)
        plain, fast = _encoders(variant, device.name)
        expected = _embedding(plain(images)).float()
        tflop = operations(lambda: plain(images))
        rows = []
        for name in dtypes:
            for title, network in (("plain", plain), ("fused attention", fast)):
                if compiler and network is plain:
                    continue
                row = Row("encoder", variant, title, name, tflop=tflop)
                _one(row, device, network.to(DTYPES[name]), images, expected, compiler)
                rows.append(row)
        return rows


def _one(
    row: Row,
    device: Device,
    network: Any,
    images: Tensor,
    expected: Tensor,
    compiler: str | None,
) -> None:
    """Measure a row; what torch reports is noted instead, such as missing memory or compilers."""
    images = images.to(DTYPES[row.dtype])
    if compiler:
        row.variant = f"{row.variant}, compiled ({compiler})"
        network = torch.compile(network, backend=compiler)
    try:
        compare(row, [_embedding(network(images))], [expected])
        row.timing = device.measure(lambda: network(images))
    except RuntimeError as error:
        row.note = (str(error).splitlines() or [type(error).__name__])[0][:120]
    device.free()


def _encoders(variant: str, device: str) -> tuple[Any, Any]:
    if variant in networks.HIERAS:
        kinds = ("eager", "sdpa")
        plain, fast = (networks.hiera(variant, device, kind) for kind in kinds)
        return plain, fast
    pair = networks.sam(variant, device)
    return pair.plain.vision_encoder, pair.ours.image_encoder


def _embedding(output: Any) -> Tensor:
    """Return the embedding from what an encoder returns."""
    if isinstance(output, Tensor):
        return output
    maps = getattr(output, "fpn_hidden_states", None)
    result: Tensor = output.last_hidden_state if maps is None else maps[-1]
    return result

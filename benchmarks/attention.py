"""ViT-B's image encoder: relative positions folded into queries and keys, or added to scores.

Both graphs have the same seeded random weights and run interleaved in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from samserve.export.onnx_export import export_encoder
from samserve.export.onnx_file import save
from samserve.export.sam import image_encoder
from samserve.export.sam.config import VARIANTS, SamConfig
from samserve.export.sam.model import Sam
from torch import Tensor

Attention = image_encoder.Attention


def added(self: Attention, cells: Tensor) -> Tensor:
    """Compute the baseline as in the reference: position terms are added to the scores."""
    side, heads, width = self.side, self.heads, self.head_width
    split = self.qkv(cells).reshape(-1, side * side, 3, heads, width)
    query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
    rows, columns = self.position_scores(query)
    scores = ((query * width**-0.5) @ key.transpose(2, 3)).reshape(-1, heads, side**2, side, side)
    scores = scores + rows.unsqueeze(4) + columns.unsqueeze(3)
    weights = torch.softmax(scores.reshape(-1, heads, side * side, side * side), dim=3)
    mixed = (weights @ value).transpose(1, 2).reshape(-1, side, side, heads * width)
    result: Tensor = self.proj(mixed)
    return result


def random_sam(variant: str) -> Sam:
    """Build a SAM with seeded random weights, including those that are initialized to zero."""
    torch.manual_seed(0)
    sam = Sam(SamConfig(VARIANTS[variant])).eval().requires_grad_(False)
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return sam


def session(sam: Sam, forward: Callable[..., Tensor], folder: Path) -> Any:
    """Export with an attention implementation and open the graph with two threads."""
    folder.mkdir()
    original, Attention.forward = Attention.forward, forward  # type: ignore[method-assign]
    try:
        path = save(export_encoder(sam), folder)
    finally:
        Attention.forward = original  # type: ignore[method-assign]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=["vit_b", "vit_l"], default="vit_b")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    sam = random_sam(options.variant)
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    feeds = {"image": image, "image_size": np.array([[1024, 768]], np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            "folded": session(sam, Attention.forward, Path(folder) / "folded"),
            "added": session(sam, added, Path(folder) / "added"),
        }
        embeddings = {name: each.run(None, feeds)[0] for name, each in sessions.items()}
        spent: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(options.rounds):
            for name, each in sessions.items():
                started = time.perf_counter()
                each.run(None, feeds)
                spent[name].append(time.perf_counter() - started)
    unequal = int(np.count_nonzero(embeddings["folded"] != embeddings["added"]))
    print(f"unequal numbers of the embedding: {unequal} of {embeddings['added'].size}")
    for name, times in spent.items():
        print(f"{name:>7}: median {statistics.median(times):.2f} s")
    ratios = [one / other for one, other in zip(spent["folded"], spent["added"], strict=True)]
    print(f"folded/added: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()

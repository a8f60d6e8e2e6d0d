"""Time and memory of an export of a checkpoint with seeded random weights."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from samserve.export.images import SAMPLES
from samserve.export.pipeline import ExportOptions, Precision, export
from samserve.export.sam.config import VARIANTS

from benchmarks.attention import random_sam


def main() -> None:
    """Export once; print time, memory and the parity of the masks with those of the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=list(VARIANTS), default="vit_b")
    parser.add_argument("--precision", choices=list(Precision), default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "sam.pth"
        torch.save(random_sam(options.variant).state_dict(), checkpoint)
        started = time.perf_counter()
        exported = export(
            checkpoint,
            ExportOptions(
                Path(folder) / "models",
                precision=Precision(options.precision),
                images=(SAMPLES / "coffee.jpg",),
            ),
            lambda step: print(f"{time.perf_counter() - started:6.1f} s  {step}", flush=True),
        )
        spent = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{spent:6.1f} s  done, peak {peak:.1f} GB")
    print(exported.card.parity)


if __name__ == "__main__":
    main()

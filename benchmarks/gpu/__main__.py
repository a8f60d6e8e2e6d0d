"""SAM's networks on one GPU, in one run of at most six minutes: `python -m benchmarks.gpu`.

Run it in the root of the repository.  It needs torch, numpy and transformers, no weights and no
network.  It stops by itself and names the parts that were left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write JSON and print tables; return the exit status, 1 if nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="toy sizes; always without a GPU")
    parser.add_argument("--seconds", type=float, default=330.0, help="limit of the whole run")
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"))
    options = parser.parse_args(arguments)
    try:
        import torch  # noqa: PLC0415  (may be missing)
    except ImportError as error:
        parser.error(f"torch is needed: {error}")
    from benchmarks.gpu import suite  # noqa: PLC0415  (needs torch)
    from benchmarks.gpu.clock import Clock  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    toy = options.toy or not has_gpu
    report = suite.measure(Clock(options.seconds), toy=toy, device="cuda" if has_gpu else "cpu")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report.to_json())
    print(report.to_markdown())
    return 0 if report.rows else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What a training step of `samserve tune` costs with adapters in the image encoder.

    python -m benchmarks.tuning_step mobile|vit_b [--rank 4] [--steps 3] [--prompts 12]

Weights are random, of a published size; images are noise.  Prints the mean CPU seconds of a step of
one image and the peak memory of the process, once with an embedding that is given and once with
adapters, and the seconds of the encoder alone.  Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from samserve.export.families.base import Naming
from samserve.export.families.sam1 import Sam1Network
from samserve.export.sam.config import VARIANTS, SamConfig
from samserve.export.sam.model import Sam
from samserve.tuning.batches import Micro
from samserve.tuning.decoders import NetworkDecoder
from samserve.tuning.encoders import AdaptedEncoder, FixedEncoder
from samserve.tuning.interactive import PromptBatch
from samserve.tuning.tunable import Tunable
from samserve.tuning.tuner import Plan, Tuner


def measure(variant: str, rank: int, steps: int, prompts: int) -> None:
    """Print the mean time of a step after a first one, and the peak memory."""
    network = _network(variant)
    side = network.shapes.image_size
    inputs: tuple[torch.Tensor, ...] = (
        torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8),
        torch.tensor([[side, side]], dtype=torch.int32),
    )
    decoder = NetworkDecoder(network)
    if rank:
        card = SimpleNamespace(precision="fp32")
        base = SimpleNamespace(graphs={"encoder": Path("none")}, info=SimpleNamespace(card=card))
        tunable = Tunable(decoder, AdaptedEncoder(network, base, rank, 0))  # type: ignore[arg-type]
    else:
        count = len(network.shapes.embedding)
        inputs = tuple(_encoded(network, inputs)[:count])
        tunable = Tunable(decoder, FixedEncoder(Path("none")))
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(tunable, Plan(steps, None, 0, 1e-4, adapter_rank=rank), Path(folder))
        tuner.train_step([Micro(inputs, _prompts(side, prompts))])
        began = time.process_time()
        for _ in range(steps):
            tuner.train_step([Micro(inputs, _prompts(side, prompts))])
        seconds = (time.process_time() - began) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    count = sum(each.numel() for each in tuner.weights)
    print(f"rank {rank}: {seconds:.1f} CPU seconds a step, {peak:.1f} GiB, {count:,} weights")


def _network(variant: str) -> Sam1Network:
    torch.manual_seed(0)
    sam = Sam(SamConfig(VARIANTS[variant])).eval().requires_grad_(False)
    return Sam1Network(sam, Naming.ORIGINAL)


def _encoded(network: Sam1Network, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    graph = network.encoder_graph().eval()
    with torch.no_grad():
        began = time.process_time()
        outputs: tuple[torch.Tensor, ...] = graph(*inputs)
    print(f"encoder without gradients: {time.process_time() - began:.1f} CPU seconds")
    return outputs


def _prompts(side: int, prompts: int) -> PromptBatch:
    low_res = side // 4
    masks = torch.zeros(1, prompts, 3, low_res, low_res, dtype=torch.uint8)
    masks[:, :, 0, 20:80, 20:80] = 1
    points = torch.full((1, prompts, 2, 2), 160.0)
    labels = torch.tensor([1.0, -1.0]).expand(1, prompts, 2).contiguous()
    valid = torch.zeros(1, prompts, 3, dtype=torch.bool)
    valid[:, :, 0] = True
    return PromptBatch(
        coords=points,
        labels=labels,
        masks=masks,
        valid=valid,
        target=torch.zeros(1, prompts, dtype=torch.int64),
        boxed=torch.zeros(1, prompts, dtype=torch.bool),
        tail=1,
    )


def main() -> None:
    """Measure both in processes of their own; with ``--alone``, one of them in this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    if options.alone:
        measure(options.variant, options.rank, options.steps, options.prompts)
        return
    for rank in (0, options.rank):
        arguments = [f"--rank={rank}", f"--steps={options.steps}", f"--prompts={options.prompts}"]
        module = [sys.executable, "-m", "benchmarks.tuning_step", options.variant]
        subprocess.run([*module, *arguments, "--alone"], check=True)


if __name__ == "__main__":
    main()

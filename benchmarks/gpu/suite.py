"""The parts, the most important first, within a limit of time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.clock import Clock, OutOfTime
from benchmarks.gpu.device import Device
from benchmarks.gpu.report import Report
from benchmarks.gpu.rows import Row

COUNTS = [1, 8, 64, 256, 1024]
TYPES = ["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Part:
    """A part; ``seconds`` is a guess of its duration, and it is not begun with less left."""

    title: str
    seconds: float
    run: Callable[[Device], list[Row]]


def parts(*, toy: bool) -> list[Part]:
    """Return all parts.  Raises `ImportError` if a package is missing."""
    # Here, since they import the export and transformers, which may be missing.
    from benchmarks.gpu import automask, decoders, encoders  # noqa: PLC0415

    def encoder(name: str, seconds: float, compiler: str | None = None) -> Part:
        title = f"encoder {name}" + (f", compiled ({compiler})" if compiler else "")
        kinds = TYPES if not compiler else TYPES[:2]
        return Part(title, seconds, lambda on: encoders.measure(on, name, kinds, compiler=compiler))

    def decoder(name: str, seconds: float, counts: list[int]) -> Part:
        return Part("decoder", seconds, lambda on: decoders.measure(on, name, TYPES, counts))

    def search(name: str, seconds: float, plan: automask.Search) -> Part:
        run = automask.measure
        return Part(f"automask {name}", seconds, lambda on: run(on, name, TYPES[:2], plan))

    if toy:
        small = automask.Search(16, (80, 120), 4, 8)
        return [
            decoder("toy", 0, [1, 8]),
            encoder("toy", 0),
            search("toy", 0, small),
            encoder("sam2.1_toy", 0),
            # Without a compiler, which a test would wait for.
            encoder("toy", 0, "eager"),
        ]
    return [
        decoder("vit_b", 60, COUNTS),
        encoder("vit_b", 15),
        encoder("vit_h", 25),
        search("vit_b", 45, automask.Search()),
        encoder("sam2.1_large", 20),
        encoder("vit_b", 40, "inductor"),
        encoder("vit_l", 20),
        *(encoder(f"sam2.1_{name}", 12) for name in ("tiny", "small", "base_plus")),
        encoder("vit_h", 60, "inductor"),
        encoder("sam2.1_large", 60, "inductor"),
        encoder("vit_l", 50, "inductor"),
        *(encoder(f"sam2.1_{name}", 40, "inductor") for name in ("tiny", "small", "base_plus")),
    ]


def measure(clock: Clock, *, toy: bool, device: str) -> Report:
    """Run the parts that the clock allows; what fails is reported as left out."""
    report = Report(Device(device, 0.01 if toy else 1.0), versions(), toy)
    side = 256 if toy else 8192
    # An exact comparison needs products in full float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        planned = [Part("device", 0, lambda on: _probe(on, side)), *parts(toy=toy)]
    except ImportError as error:
        planned = [Part("device", 0, lambda on: _probe(on, side))]
        report.left_out.append(f"all networks: {error}")
    for part in planned:
        _run(report, part, clock)
    report.seconds = clock.elapsed()
    return report


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and transformers."""
    found = {"Python": sys.version.split()[0], "torch": torch.__version__}
    try:
        found["transformers"] = importlib.import_module("transformers").__version__
    except ImportError:
        found["transformers"] = "missing"
    return found


def _probe(device: Device, side: int) -> list[Row]:
    device.probe(side, TYPES)
    return []


def _run(report: Report, part: Part, clock: Clock) -> None:
    if not clock.allows(part.seconds):
        left = max(clock.limit - clock.elapsed(), 0.0)
        report.left_out.append(f"{part.title}: about {part.seconds:.0f} s, {left:.0f} s were left")
        return
    started = clock.elapsed()
    print(f"{started:.0f} s: {part.title}", file=sys.stderr, flush=True)
    try:
        with clock.interrupting():
            report.rows += part.run(report.device)
    except OutOfTime:
        report.left_out.append(f"{part.title}: interrupted after {clock.elapsed() - started:.0f} s")
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        # The others are worth as much without it; versions of libraries differ.
        reason = (str(error).splitlines() or [""])[0][:200]
        report.left_out.append(f"{part.title}: {type(error).__name__}: {reason}")
    report.device.free()

"""Runs of `samserve annotate` in processes of their own that are killed, and their comparison."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from samserve.core import run_lengths
from samserve.datasets import sa1b
from samserve.datasets.types import ImageRecord
from samserve.types import CocoRle

from tests.support.waiting import until_sync


@dataclass(frozen=True)
class Agreement:
    """How two outputs differ.

    ``other_selection`` are the records whose masks are of other points; ``equal_pixels`` is the
    part of the image that is the same in both, of the mask that differs most.
    """

    images: int
    masks: int
    other_selection: Sequence[str]
    equal_pixels: float


def command(source: Path, out: Path, *options: str) -> list[str]:
    """Return the command line of a run."""
    return [sys.executable, "-m", "samserve", "annotate", str(source), "--out", str(out), *options]


def killed(arguments: Sequence[str], out: Path, times: int, seed: int, most: int) -> int:
    """Start a run and kill it, *times* times; return the number of records then.

    A process is killed when it has written a random number of records, up to *most*.
    """
    moments = random.Random(seed)
    for _ in range(times):
        _kill_one(arguments, out, moments.randint(1, most))
    return len(_records(out))


def _kill_one(arguments: Sequence[str], out: Path, written: int) -> None:
    target = len(_records(out)) + written
    quiet = subprocess.DEVNULL
    with subprocess.Popen(arguments, stdout=quiet, stderr=quiet) as run:
        until_sync(lambda: len(_records(out)) >= target or run.poll() is not None, timeout_s=250)
        run.send_signal(signal.SIGKILL)


def _records(out: Path) -> list[Path]:
    return list((out / "records").rglob("*.json"))


def agreement(first: Path, second: Path) -> Agreement:
    """Compare the records of two outputs.  Raises if they are of different images."""
    names = [
        sorted(str(path.relative_to(out / "records")) for path in _records(out))
        for out in (first, second)
    ]
    assert names[0] == names[1]
    other: list[str] = []
    equal, masks = 1.0, 0
    for name in names[0]:
        ours, theirs = (sa1b.read_file(out / "records" / name) for out in (first, second))
        masks += len(ours.annotations)
        if _selection(ours) != _selection(theirs):
            other.append(name)
            continue
        equal = min(equal, _equal_pixels(ours, theirs))
    return Agreement(len(names[0]), masks, other, equal)


def _selection(record: ImageRecord) -> list[object]:
    return [(each.point_coords, each.crop_box) for each in record.annotations]


def _equal_pixels(first: ImageRecord, second: ImageRecord) -> float:
    worst = 1.0
    for ours, theirs in zip(first.annotations, second.annotations, strict=True):
        assert isinstance(ours.segmentation, CocoRle)
        assert isinstance(theirs.segmentation, CocoRle)
        same = run_lengths.decode(ours.segmentation) == run_lengths.decode(theirs.segmentation)
        worst = min(worst, float(np.mean(same)))
    return worst

"""Small models, and images of discs that they can learn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from samserve import app
from samserve.core import run_lengths
from samserve.datasets import coco
from samserve.datasets.formats import WriteOptions
from samserve.datasets.types import Annotation, DataSet, ImageRecord, Origin
from samserve.export.parity import ExportedModel
from samserve.export.pipeline import ExportOptions, Precision, export
from samserve.models.repository import Bundle, discover
from samserve.tuning.batches import Batches, Micro, Sampling
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.evaluation import Demands
from samserve.tuning.examples import Example, Parts, Target
from samserve.tuning.pipeline import TuneOptions
from samserve.types import Size
from torch import nn

from tests.families.toys import SAM2_SIZE
from tests.oracle import edgetam, photos, sam2, sam2_local, sam_hq
from tests.oracle.sam import SMALL, build_sam

SIDE = 128
RANK = 4
"""The rank of adapters."""
ANY = Demands(min_gain=-1.0, max_loss=1.0)
"""Demands that every model fulfils: toys learn too little in a few steps."""
TINY_RATE = 1e-60
"""A learning rate that is 0 in float32."""
SAM_TINY = app.default_repository()
"""The repository of the default model."""


@dataclass(frozen=True)
class Toy:
    """A checkpoint, and its export; the default model has no checkpoint."""

    checkpoint: Path | None
    base: Bundle[Path]

    def options(self, folder: Path, **changes: object) -> TuneOptions:
        """Return options of a short run with all of its files in *folder*."""
        values: dict[str, object] = {
            "repository": folder / "models",
            "name": "tuned",
            "run": folder / "run",
            "steps": 3,
            "rate": 1e-3,
            "checkpoint": self.checkpoint,
            "sampling": Sampling(images=1, prompts=4),
            "max_objects": 4,
        }
        return TuneOptions(**values | changes)  # type: ignore[arg-type]


class Killing(Batches):
    """Batches that end with an interrupt."""

    def __init__(self, batches: Batches, step: int) -> None:
        self._batches, self._step = batches, step

    def of_step(self, step: int) -> list[Micro]:
        """Return the batch of a step before the interrupt."""
        if step == self._step:
            raise KeyboardInterrupt
        return self._batches.of_step(step)


def sam1(folder: Path, precision: str = "fp32") -> Toy:
    """Build a SAM."""
    original = build_sam(SMALL, photos.calibration())
    torch.save(original.state_dict(), folder / "sam.pth")
    return _exported(folder / "sam.pth", folder, precision)


def sam21(folder: Path) -> Toy:
    """Build a SAM 2.1."""
    model = sam2.model(SAM2_SIZE)
    sam2_local.localise(model, photos.calibration())
    return _exported(sam2.save(model, folder / "checkpoint"), folder)


def hq(folder: Path) -> Toy:
    """Build a SAM-HQ."""
    torch.save(sam_hq.build().state_dict(), folder / "sam_hq.pth")
    return _exported(folder / "sam_hq.pth", folder)


def edge(folder: Path) -> Toy:
    """Build an EdgeTAM, whose image encoder is that of the published model."""
    model = edgetam.model(SAM2_SIZE.grid, SAM2_SIZE.channels)
    sam2_local.localise(model, photos.calibration())
    return _exported(sam2.save(model, folder / "checkpoint"), folder)


MAKERS = {"sam1": sam1, "sam2": sam21, "sam_hq": hq, "edgetam": edge}
ADAPTED = ("sam1", "sam2")
"""Those that are tuned with adapters: EdgeTAM's encoder has no attention."""


def _exported(checkpoint: Path, folder: Path, precision: str = "fp32") -> Toy:
    options = ExportOptions(
        folder / "repository",
        "toy",
        precision=Precision(precision),
        check_parity=precision != "fp32",
    )
    export(checkpoint, options)
    (base,) = discover(folder / "repository")
    return Toy(checkpoint, base)


def discs(folder: Path, seed: int, images: int) -> tuple[Example, ...]:
    """Write images with bright discs, and return them with their masks."""
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(_discs(folder / f"{seed}-{index}.png", (seed, index)) for index in range(images))


def _discs(path: Path, seed: tuple[int, int]) -> Example:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = rng.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
    masks = []
    for x, y in ((32, 32), (96, 32), (32, 96), (96, 96)):
        radius = rng.uniform(10, 26)
        mask = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        image[mask] = rng.integers(150, 255, 3)
        masks.append(mask)
    Image.fromarray(image).save(path)
    targets = tuple(Target(run_lengths.encode(mask)) for mask in masks)
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    return Example(path, key, Size(SIDE, SIDE), targets)


def write_coco(folder: Path, seed: int, images: int) -> Path:
    """Write images with discs, and a COCO file beside them with their masks; return it."""
    records = [
        ImageRecord(
            example.path.name,
            example.size,
            tuple(Annotation(target.mask, origin=Origin.CORRECTED) for target in example.targets),
        )
        for example in discs(folder, seed, images)
    ]
    coco.write(DataSet(records), folder / "coco.json", WriteOptions())
    return folder / "coco.json"


def parts(folder: Path) -> Parts:
    """Return a training part of four images, and a held-out part of two."""
    return Parts(discs(folder, 1, 4), discs(folder, 2, 2))


def redraw_adapters(module: nn.Module) -> None:
    """Draw all adapters: the second factor of a new one is 0."""
    torch.manual_seed(7)
    with torch.no_grad():
        for each in module.parameters():
            if each.requires_grad:
                each.normal_(0, 0.1)


def embeddings(toy: Toy, folder: Path) -> Embeddings:
    """Return the embeddings by the encoder of a toy, with their files in *folder*."""
    return Embeddings(ExportedModel(toy.base.graphs), toy.base.info, folder / "embeddings")

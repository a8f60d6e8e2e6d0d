"""The pipeline on a real server in this process, with the fake engine."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from samserve.annotate import pipeline, run
from samserve.annotate.gateways import Gateways
from samserve.annotate.pipeline import ImageJob, Summary
from samserve.annotate.types import Segmenter
from samserve.client import Client, Model
from samserve.core import rle
from samserve.datasets import sa1b
from samserve.datasets.types import Annotation, ImageRecord
from samserve.settings import Settings
from samserve.types import BoolArray, CocoRle

from tests.conftest import serving

SIZE = (96, 128)
"""Height and width of the images."""


def write_images(folder: Path, *names: str) -> Path:
    """Write images of `SIZE`, each with other pixels."""
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(file.getvalue())
    return folder


@asynccontextmanager
async def gateways_of(settings: Settings | None = None) -> AsyncIterator[Gateways]:
    """Serve, and connect to the server."""
    async with serving(settings) as (running, _), Client(running.address) as client:
        yield Gateways([client])


async def annotate(
    gateways: Gateways,
    source: Path,
    out: Path,
    segmenter: Callable[[Model, Mapping[str, int]], Segmenter],
) -> Summary:
    """Annotate the images of a folder."""
    chosen = run.plan(str(source), str(out))
    catalog = await gateways.models()
    model = catalog.models[0]
    images = ImageJob(
        chosen.source,
        chosen.records,
        segmenter(model, catalog.limits),
        model.name,
        model.digest,
    )
    job: pipeline.Job = pipeline.Job(
        lambda image: images.process(gateways, image), lambda image: image.name, 2
    )
    return await pipeline.run(chosen.images, job)


def records_of(out: Path) -> dict[str, ImageRecord]:
    """Read the records of an output by the names of the images."""
    return {each.file_name: each for each in sa1b.read_folder(out).images}


def mask_of(annotation: Annotation) -> BoolArray:
    """Decode the pixels of an annotation."""
    assert isinstance(annotation.segmentation, CocoRle)
    return rle.decode(annotation.segmentation)


def iou(first: BoolArray, second: BoolArray) -> float:
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))

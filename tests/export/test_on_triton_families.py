"""Exports of all families in one tritonserver with shared memory.

Results are compared with the in-process engine, and masks of AutoMask with the original generators.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from google.protobuf import text_format
from samserve.core import rle
from samserve.export.pipeline import ExportOptions, export
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from tritonclient.grpc import model_config_pb2

from harness.triton.server import TritonServer
from tests import sample_images
from tests.conftest import serving, settings_with
from tests.families import toys
from tests.families.predicting import PHOTOS as AUTOMASK_PHOTOS
from tests.families.predicting import mask_of
from tests.families.references import REFERENCES
from tests.families.test_automask import AUTOMASK, matched_iou
from tests.families.toys import FEW_PIXELS, Toy
from tests.oracle import photos
from tests.oracle.sam import SMALL, build_sam

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # with the exports
    pytest.mark.asyncio(loop_scope="module"),
]

# EdgeTAM has the rules and tensors of SAM 2.
ORIGINALS = ("sam2", "sam_hq")
MODELS = ("sam1", *ORIGINALS)
THREADS = 2
PHOTOS = {"wide": photos.coffee_427x640()[:, :611], "high": photos.coffee_427x640()[:389, :301]}
Stubs = dict[str, SegmentationServiceStub]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toy]:
    """A small model of each of the newer families, and its export."""
    return {name: toys.MAKERS[name](tmp_path_factory.mktemp(name), name) for name in ORIGINALS}


@pytest.fixture(scope="module")
def repository(originals: dict[str, Toy]) -> Iterator[Path]:
    """A repository with a small model of each family, exported from checkpoints."""
    with tempfile.TemporaryDirectory() as name:
        folder, models = Path(name), Path(name) / "models"
        plain = build_sam(SMALL, photos.calibration(), foreground=FEW_PIXELS)
        torch.save(plain.state_dict(), folder / "sam1.pth")
        export(folder / "sam1.pth", ExportOptions(models, "sam1", check_parity=False))
        for toy in originals.values():
            shutil.copytree(toy.repository, models, dirs_exist_ok=True)
        for config in models.glob("*/config.pbtxt"):
            _run_as_in_process(config)
        yield models


def _run_as_in_process(file: Path) -> None:
    """Configure a graph to run single requests, with the threads of the in-process engine.

    In other batches, and with another number of threads, sums have another order.
    """
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    config.ClearField("dynamic_batching")
    config.parameters["intra_op_thread_count"].string_value = str(THREADS)
    file.write_text(text_format.MessageToString(config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stubs(repository: Path) -> AsyncIterator[Stubs]:
    """A service on each engine, with the same models."""
    server = TritonServer(repository, log=repository.parent / "log", start_timeout_s=300)
    cache = {"local": {"capacity_bytes": 64 << 20}}
    onnx = {"kind": "onnx", "model_repository": repository, "threads": THREADS}
    async with AsyncExitStack() as stack:
        stack.callback(server.kill)
        await asyncio.to_thread(server.start)
        triton = {"url": server.grpc_address, "shared_memory": "required"}
        sections = {
            "triton": {"engine": {"kind": "triton"}, "triton": triton, "cache": cache},
            "onnx": {"engine": onnx, "cache": cache},
        }
        yield {
            name: (await stack.enter_async_context(serving(settings_with(**each))))[1]
            for name, each in sections.items()
        }


def image(name: str) -> pb.Image:
    return pb.Image(encoded=sample_images.encode(PHOTOS[name]))


def prompts(width: int, height: int) -> list[pb.Prompt]:
    """Return a prompt of each kind."""
    box = pb.Box(x_min=0.2 * width, y_min=0.3 * height, x_max=0.7 * width, y_max=0.8 * height)
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 2, width // 4 : width // 2] = True
    counts = rle.encode(mask).counts
    encoded = pb.MaskInput(
        binary=pb.CocoRle(size=pb.ImageSize(height=height, width=width), counts=counts)
    )
    points = [
        pb.Point(x=x * width, y=y * height, label=label)
        for x, y, label in ((0.4, 0.6, 1), (0.5, 0.5, 1), (0.1, 0.9, 2))
    ]
    return [
        pb.Prompt(points=points[:1]),
        pb.Prompt(points=points),
        pb.Prompt(box=box),
        pb.Prompt(points=points[:2], box=box),
        pb.Prompt(mask=encoded),
        pb.Prompt(points=points[:1], mask=encoded),
    ]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("photo", PHOTOS)
async def test_predict_returns_the_same_on_both_engines(
    family: str, photo: str, stubs: Stubs
) -> None:
    height, width = PHOTOS[photo].shape[:2]
    modes = [pb.HQ_MODE_UNSPECIFIED] + [pb.HQ_MODE_OFF, pb.HQ_MODE_ONLY] * (family == "sam_hq")
    for multimask in (pb.MULTIMASK_AUTO, pb.MULTIMASK_SINGLE, pb.MULTIMASK_ALL):
        for mode in modes:
            request = pb.PredictRequest(
                model=family,
                image=image(photo),
                prompts=prompts(width, height),
                multimask=multimask,
                hq_mode=mode,
                include_low_res_logits=True,
            )
            answers = [await stub.Predict(request) for stub in stubs.values()]

            first, second = answers
            assert first.results == second.results
            areas = [mask.area for result in first.results for mask in result.masks]
            assert max(areas) > 0
            assert len(first.results) == 6
            has_score = [result.HasField("object_score") for result in first.results]
            assert has_score == [family == "sam2"] * 6


async def segment(
    stub: SegmentationServiceStub, model: str, photo: np.ndarray, options: dict[str, Any]
) -> list[pb.AutoMaskRecord]:
    encoded = pb.Image(encoded=sample_images.encode(photo))
    request = pb.AutoMaskRequest(model=model, image=encoded, options=pb.AutoMaskOptions(**options))
    events = [event async for event in stub.AutoMask(request)]
    return [record for event in events for record in event.masks.records]


@pytest.mark.parametrize("model", ORIGINALS)
@pytest.mark.parametrize("name", ["whole", "wide, crops"])
async def test_automask_returns_the_masks_of_the_original_generator_on_triton(
    name: str, model: str, stubs: Stubs, originals: dict[str, Toy]
) -> None:
    photo_name, options, _ = AUTOMASK[name]
    reference = REFERENCES[model](originals[model])
    photo = AUTOMASK_PHOTOS[photo_name]()

    found = [await segment(stub, model, photo, options) for stub in stubs.values()]

    assert found[0] == found[1]
    expected = [record["segmentation"] for record in reference.auto_mask(photo, **options)]
    actual = [mask_of(record.mask) for record in found[0]]
    assert min(len(actual), len(expected)) >= 20
    assert abs(len(actual) - len(expected)) <= 0.02 * len(expected)
    assert matched_iou(actual, expected) >= 0.99


@pytest.mark.parametrize("layers", [0, 1], ids=["whole", "crops"])
async def test_automask_of_sam_1_returns_the_same_on_both_engines(
    layers: int, stubs: Stubs
) -> None:
    options = {
        "points_per_side": 6,
        "crop_n_layers": layers,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 0.95,
    }

    found = [await segment(stub, "sam1", PHOTOS["wide"], options) for stub in stubs.values()]

    assert len(found[0]) >= 5
    assert found[0] == found[1]

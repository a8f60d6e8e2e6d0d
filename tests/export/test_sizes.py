"""The published sizes, from both kinds of checkpoints, against PyTorch.

All are slow; `test_parity.py` compares a small SAM by the same code.  ViT-H needs some 16 GB of
memory and 8 GB of disk.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from samserve.engines.repository import discover
from samserve.export.pipeline import Exported, ExportOptions, export
from samserve.v1 import samserve_pb2 as pb
from torch import nn

from harness.triton.server import TritonServer
from tests import chosen
from tests import pictures as pictures_of_the_suite
from tests.conftest import serving, settings_with
from tests.export.bars import (
    assert_same_logits,
    assert_same_masks,
    assert_worth_comparing,
    relative_l2,
)
from tests.export.conftest import Pair, View, session
from tests.export.prompts import decode_exported, decode_originally, prompts_of
from tests.export.test_served import mask_of
from tests.oracle import huggingface, pictures
from tests.oracle.sam import VIT_B, VIT_H, VIT_L, SamPredictor, SamSize, build_sam

SIZES = [
    pytest.param(("vit_b", VIT_B), id="vit_b", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    pytest.param(("vit_l", VIT_L), id="vit_l", marks=[pytest.mark.slow, pytest.mark.timeout(1500)]),
    pytest.param(("vit_h", VIT_H), id="vit_h", marks=[pytest.mark.slow, pytest.mark.timeout(2400)]),
]


class Forgotten(nn.Module):
    """Where an image encoder was."""

    img_size = 1024


@dataclass(frozen=True)
class Sized:
    """One size: its original and the export, which have both seen the same picture."""

    size: SamSize
    pair: Pair
    exported: Exported
    view: View


@pytest.fixture(scope="module", params=SIZES)
def sized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sized]:
    """Seeded random weights under the original names, exported; one at a time in memory."""
    variant, size = request.param
    folder = tmp_path_factory.mktemp(variant)
    original = build_sam(size, pictures.calibration()[:1])
    torch.save(original.state_dict(), folder / "sam.pth")
    exported = export(
        folder / "sam.pth",
        ExportOptions(folder / "repository", "pair", variant=variant, check=False),
    )
    pair = Pair(original, folder / "sam.pth", folder / "repository")
    view = view_of(pair)
    # What is left to do needs its size alone, and the checkpoint has its weights.
    original.image_encoder = Forgotten()
    yield Sized(size, pair, exported, view)
    del original, pair, view
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    gc.collect()


def view_of(pair: Pair) -> View:
    """Embed a photograph by both, with noise where there is no picture."""
    picture = pictures.coffee_427x640()
    predictor = SamPredictor(pair.original)
    predictor.set_image(picture)
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024, 3), np.uint8)
    resized = predictor.transform.apply_image(picture)
    image[0, : resized.shape[0], : resized.shape[1]] = resized
    image_size = np.array([resized.shape[:2]], np.int32)
    (stored,) = session(pair.encoder_path).run(None, {"image": image, "image_size": image_size})
    original = predictor.features.numpy()
    return View(picture, predictor, image, image_size, original, stored.astype("f4"), stored)


def test_embedding_is_the_originals(sized: Sized) -> None:
    view = sized.view

    assert relative_l2(view.stored, view.original) < 5e-4
    # Rounding alone is 2e-4; what the encoder itself may differ by shows beside the original's.
    assert relative_l2(view.stored, view.original.astype(np.float16).astype("f4")) < 1e-4


@pytest.mark.parametrize("kind", ["points1", "box", "points2+box+mask"])
def test_masks_are_the_originals(sized: Sized, kind: str) -> None:
    prompts = prompts_of(kind, sized.view, seed=3)
    expected = decode_originally(sized.pair, sized.view, prompts)

    (answer,) = decode_exported(sized.pair, [sized.view], [prompts])

    assert_worth_comparing(expected)
    assert_same_logits(answer, expected)
    assert_same_masks(sized.view, answer, expected)


def test_the_same_weights_from_a_transformers_directory(sized: Sized, tmp_path: Path) -> None:
    """They give the same models, which answer as the library's own forward pass does."""
    view = sized.view
    state = torch.load(sized.pair.checkpoint, mmap=True, weights_only=True)
    library = huggingface.from_original(sized.size, state)
    folder = huggingface.save(library, tmp_path / "sam-vit")

    exported = export(folder, ExportOptions(tmp_path / "repository", "pair", check=False))

    assert exported.digest == sized.exported.digest
    assert discover(tmp_path / "repository")[0].info.card.source_format == "transformers, float32"
    pixels = torch.from_numpy(view.predictor.transform.apply_image(view.picture))
    standardised = view.predictor.model.preprocess(pixels.permute(2, 0, 1).unsqueeze(0).float())
    assert relative_l2(view.stored, huggingface.embed(library, standardised)) < 5e-4
    for kind in ("points1", "box"):
        prompts = prompts_of(kind, view, seed=5)
        (answer,) = decode_exported(sized.pair, [view], [prompts])
        logits, iou = huggingface.decode(library, view.uncast, prompts.coords, prompts.boxes)
        assert np.abs(answer.logits[:, 1:] - logits).max() < 1e-3 * logits.std()
        assert np.abs(answer.iou[:, 1:] - iou).max() < 1e-4
        assert ((answer.logits[:, 1:] > 0) == (logits > 0)).mean() >= 0.9999


@pytest.mark.parametrize("sized", SIZES[:1], indirect=True)
@pytest.mark.parametrize("engine", ["onnx", "triton"])
async def test_it_is_served(sized: Sized, engine: str) -> None:
    """A click through the whole service, in-process and from a real Triton."""
    view = sized.view
    height, width = view.picture.shape[:2]
    x, y = 0.4 * width, 0.6 * height
    predictor = view.predictor
    predictor.features = torch.from_numpy(view.original)
    expected, iou, _ = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
    request = pb.PredictRequest(
        image=pb.Image(encoded=pictures_of_the_suite.file_of(view.picture)),
        prompts=[pictures_of_the_suite.click(x, y)],
        multimask=pb.MULTIMASK_ALL,
    )

    with served_by(engine, sized.pair.repository) as sections:
        async with serving(settings_with(**sections)) as (_, stub):
            (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
            answer = await stub.Predict(request)

    masks = [mask_of(mask) for mask in answer.results[0].masks]
    assert listed.card.variant == sized.exported.card.variant
    assert np.mean(np.stack(masks) == expected) >= 0.999  # the embedding is rounded in between
    found = [mask.predicted_iou for mask in answer.results[0].masks]
    np.testing.assert_allclose(found, iou, atol=1e-3)


@contextmanager
def served_by(engine: str, repository: Path) -> Iterator[chosen.Sections]:
    """Settings that serve a repository; Triton runs as long as the block."""
    if engine == "onnx":
        yield {"engine": {"kind": "onnx", "model_repository": str(repository)}}
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        server = TritonServer(model_repository=repository, log=log, start_timeout_s=300)
        try:
            server.start()
            yield {
                "engine": {"kind": "triton"},
                "triton": {
                    "url": server.grpc_address,
                    "shared_memory": "required",
                },
                "store": {"capacity_bytes": 64 << 20},
            }
        finally:
            server.kill()

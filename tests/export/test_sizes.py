"""The published sizes, from both kinds of checkpoints, against PyTorch.

`test_parity.py` compares small SAMs, which run the same code; here a small SAM has only the tests
that no other module has.  ViT-H needs about 16 GB of memory and 8 GB of disk.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from samserve.export.pipeline import Exported, ExportOptions, export
from samserve.models.repository import discover
from torch import nn

from tests.export.conftest import LARGE, Pair, View, encoder_inputs, session
from tests.export.equality import (
    assert_informative,
    assert_same_logits,
    assert_same_masks,
    relative_l2,
)
from tests.export.prompts import decode_exported, decode_original, prompts_of
from tests.export.test_on_triton import assert_served
from tests.oracle import huggingface, photos
from tests.oracle.sam import (
    FOREGROUND,
    SMALL,
    VIT_B,
    VIT_H,
    VIT_L,
    SamPredictor,
    SamSize,
    build_sam,
)

VIT_B_SIZE = ("vit_b", VIT_B)
LARGER = [
    pytest.param(("vit_l", VIT_L), id="vit_l", marks=[pytest.mark.long, pytest.mark.timeout(1500)]),
    pytest.param(("vit_h", VIT_H), id="vit_h", marks=[pytest.mark.long, pytest.mark.timeout(2400)]),
]


def sizes(vit_b: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Parametrize with every size, ViT-B with the given mark."""
    first = pytest.param(VIT_B_SIZE, id="vit_b", marks=[vit_b, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("sized", [first, *LARGER], indirect=True, scope="module")


class Released(nn.Module):
    """Replaces an image encoder, to free its memory."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.img_size = side


@dataclass(frozen=True)
class Sized:
    """One size: the original and its export, and a photo that both have embedded."""

    size: SamSize
    pair: Pair
    exported: Exported
    view: View


@pytest.fixture(scope="module")
def sized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sized]:
    """Seeded random weights under the original names, exported; only one size is in memory."""
    variant, size = request.param
    foreground = LARGE if size is SMALL else FOREGROUND
    folder = tmp_path_factory.mktemp("sized")
    original = build_sam(size, photos.calibration()[:1], foreground=foreground)
    torch.save(original.state_dict(), folder / "sam.pth")
    exported = export(
        folder / "sam.pth",
        ExportOptions(folder / "repository", "pair", variant=variant, check_parity=False),
    )
    pair = Pair(original, folder / "sam.pth", folder / "repository")
    view = view_of(pair)
    # The tests need only its size; the checkpoint has its weights.
    original.image_encoder = Released(original.image_encoder.img_size)
    yield Sized(size, pair, exported, view)
    del original, pair, view
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    gc.collect()


def view_of(pair: Pair) -> View:
    """Embed a photo with both implementations."""
    photo = photos.coffee_427x640()
    predictor = SamPredictor(pair.original)
    predictor.set_image(photo)
    image, image_size = encoder_inputs(predictor, photo)
    feeds = {"image": image, "image_size": image_size}
    (stored,) = session(pair.encoder_path).run(["image_embedding"], feeds)
    original = predictor.features.numpy()
    return View(photo, predictor, image, image_size, original, stored.astype("f4"), stored)


@sizes(vit_b=pytest.mark.slow)
def test_the_embedding_equals_the_original(sized: Sized) -> None:
    view = sized.view

    assert relative_l2(view.stored, view.original) < 5e-4
    # Rounding causes 2e-4; the difference to the rounded original is that of the encoder itself.
    assert relative_l2(view.stored, view.original.astype(np.float16).astype("f4")) < 1e-4


@sizes(vit_b=pytest.mark.long)
@pytest.mark.parametrize("kind", ["points1", "box", "points2+box+mask"])
def test_masks_equal_the_original(sized: Sized, kind: str) -> None:
    prompts = prompts_of(kind, sized.view, seed=3)
    expected = decode_original(sized.pair, sized.view, prompts)

    (output,) = decode_exported(sized.pair, [sized.view], [prompts])

    assert_informative(expected)
    assert_same_logits(output, expected)
    assert_same_masks(sized.view, output, expected)


@pytest.mark.parametrize(
    "sized",
    [
        pytest.param(("", SMALL), id="small"),
        pytest.param(VIT_B_SIZE, id="vit_b", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
        *LARGER,
    ],
    indirect=True,
    scope="module",
)
def test_a_transformers_directory_gives_the_same_model(sized: Sized, tmp_path: Path) -> None:
    """The model also gives the results of the library's own forward pass."""
    view = sized.view
    state = torch.load(sized.pair.checkpoint, mmap=True, weights_only=True)
    library = huggingface.from_original(sized.size, state)
    folder = huggingface.save(library, tmp_path / "sam-vit")

    exported = export(folder, ExportOptions(tmp_path / "repository", "pair", check_parity=False))

    assert exported.digest == sized.exported.digest
    assert discover(tmp_path / "repository")[0].info.card.source_format == "transformers, float32"
    pixels = torch.from_numpy(view.predictor.transform.apply_image(view.photo))
    standardised = view.predictor.model.preprocess(pixels.permute(2, 0, 1).unsqueeze(0).float())
    assert relative_l2(view.stored, huggingface.embed(library, standardised)) < 5e-4
    for kind in ("points1", "box"):
        prompts = prompts_of(kind, view, seed=5)
        (output,) = decode_exported(sized.pair, [view], [prompts])
        logits, iou = huggingface.decode(library, view.uncast, prompts.coords, prompts.boxes)
        assert np.abs(output.logits[:, 1:] - logits).max() < 1e-3 * logits.std()
        assert np.abs(output.iou[:, 1:] - iou).max() < 1e-4
        assert ((output.logits[:, 1:] > 0) == (logits > 0)).mean() >= 0.9999


@pytest.mark.long
@pytest.mark.parametrize("sized", [VIT_B_SIZE], ids=["vit_b"], indirect=True, scope="module")
@pytest.mark.parametrize("engine", ["onnx", "triton"])
async def test_the_export_is_served(sized: Sized, engine: str) -> None:
    """Predict on the whole service, in-process and on a real Triton."""
    listed = await assert_served(engine, sized.pair, sized.view)

    assert listed.card.variant == sized.exported.card.variant

"""The published sizes, from both kinds of checkpoints, against PyTorch.

`test_parity.py` compares small SAMs by the same code, and a small one has every test of this module
that another module does not have.  ViT-H needs some 16 GB of memory and 8 GB of disk.
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

from tests.export.bars import (
    assert_same_logits,
    assert_same_masks,
    assert_worth_comparing,
    relative_l2,
)
from tests.export.conftest import LARGE, Pair, View, placed, session
from tests.export.prompts import decode_exported, decode_originally, prompts_of
from tests.export.test_on_triton import assert_served
from tests.oracle import huggingface, pictures
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
    """Every size; ViT-B is marked as given."""
    first = pytest.param(VIT_B_SIZE, id="vit_b", marks=[vit_b, pytest.mark.timeout(900)])
    return pytest.mark.parametrize("sized", [first, *LARGER], indirect=True, scope="module")


class Forgotten(nn.Module):
    """Where an image encoder was."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.img_size = side


@dataclass(frozen=True)
class Sized:
    """One size: its original and the export, which have both seen the same picture."""

    size: SamSize
    pair: Pair
    exported: Exported
    view: View


@pytest.fixture(scope="module")
def sized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sized]:
    """Seeded random weights under the original names, exported; one at a time in memory."""
    variant, size = request.param
    foreground = LARGE if size is SMALL else FOREGROUND
    folder = tmp_path_factory.mktemp("sized")
    original = build_sam(size, pictures.calibration()[:1], foreground=foreground)
    torch.save(original.state_dict(), folder / "sam.pth")
    exported = export(
        folder / "sam.pth",
        ExportOptions(folder / "repository", "pair", variant=variant, check=False),
    )
    pair = Pair(original, folder / "sam.pth", folder / "repository")
    view = view_of(pair)
    # What is left to do needs its size alone, and the checkpoint has its weights.
    original.image_encoder = Forgotten(original.image_encoder.img_size)
    yield Sized(size, pair, exported, view)
    del original, pair, view
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    gc.collect()


def view_of(pair: Pair) -> View:
    """Embed a photograph by both."""
    picture = pictures.coffee_427x640()
    predictor = SamPredictor(pair.original)
    predictor.set_image(picture)
    image, image_size = placed(predictor, picture)
    feeds = {"image": image, "image_size": image_size}
    (stored,) = session(pair.encoder_path).run(["image_embedding"], feeds)
    original = predictor.features.numpy()
    return View(picture, predictor, image, image_size, original, stored.astype("f4"), stored)


@sizes(vit_b=pytest.mark.slow)
def test_embedding_is_the_originals(sized: Sized) -> None:
    view = sized.view

    assert relative_l2(view.stored, view.original) < 5e-4
    # Rounding alone is 2e-4; what the encoder itself may differ by shows beside the original's.
    assert relative_l2(view.stored, view.original.astype(np.float16).astype("f4")) < 1e-4


@sizes(vit_b=pytest.mark.long)
@pytest.mark.parametrize("kind", ["points1", "box", "points2+box+mask"])
def test_masks_are_the_originals(sized: Sized, kind: str) -> None:
    prompts = prompts_of(kind, sized.view, seed=3)
    expected = decode_originally(sized.pair, sized.view, prompts)

    (answer,) = decode_exported(sized.pair, [sized.view], [prompts])

    assert_worth_comparing(expected)
    assert_same_logits(answer, expected)
    assert_same_masks(sized.view, answer, expected)


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


@pytest.mark.long
@pytest.mark.parametrize("sized", [VIT_B_SIZE], ids=["vit_b"], indirect=True, scope="module")
@pytest.mark.parametrize("engine", ["onnx", "triton"])
async def test_it_is_served(sized: Sized, engine: str) -> None:
    """A click through the whole service, in-process and from a real Triton."""
    listed = await assert_served(engine, sized.pair, sized.view)

    assert listed.card.variant == sized.exported.card.variant

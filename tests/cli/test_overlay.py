"""Overlays: their size, and where they differ from the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samserve.cli.overlay import draw_masks, draw_prediction
from samserve.cli.palette import colour
from samserve.client import AutoMaskRecord, Mask, Prompt
from samserve.core import rle

from tests.cli.conftest import FAKE, Command

GREY = 120
INSIDE = (slice(200, 600), slice(300, 900))


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def mask_of(inside: np.ndarray, token: int = 1) -> Mask:
    coco = rle.encode(inside)
    return Mask(
        size=(coco.size.height, coco.size.width),
        counts=coco.counts,
        token_index=token,
        predicted_iou=0.9,
        stability_score=0.95,
        area=int(inside.sum()),
        bbox=(0, 0, 1, 1),
    )


def rectangle(height: int, width: int, where: tuple[slice, slice] = INSIDE) -> Mask:
    inside = np.zeros((height, width), dtype=bool)
    inside[where] = True
    return mask_of(inside)


def changed(overlay: Image.Image, height: int) -> np.ndarray:
    """The pixels of the overlay, without its legend, that are not grey."""
    return (np.asarray(overlay)[:height].astype(int) != GREY).any(axis=2)


def test_only_the_mask_is_tinted() -> None:
    overlay = draw_prediction(
        grey(1000, 1600), [Prompt(box=(300, 200, 900, 600))], [[rectangle(1000, 1600)]]
    )

    touched = changed(overlay, 1000)
    assert overlay.width == 1600
    assert overlay.height > 1000
    assert touched[INSIDE].all()
    assert not touched[:190].any()
    assert not touched[:, 910:].any()


def test_prompts_are_drawn_at_their_positions() -> None:
    prompt = Prompt(points=[(1200, 800), (100, 100, 0)])

    overlay = np.asarray(draw_prediction(grey(1000, 1600), [prompt], [[rectangle(1000, 1600)]]))

    # The arms of plus and minus are white; the disc beside them is green or red.
    assert tuple(overlay[800, 1200]) == tuple(overlay[100, 100]) == (255, 255, 255)
    assert overlay[789, 1189].argmax() == 1 or overlay[791, 1191].argmax() == 1
    assert overlay[91, 100].argmax() == 0


def test_each_candidate_has_its_own_panel_and_colour() -> None:
    masks = [rectangle(600, 1000, (slice(100, 500), slice(100, 900))) for _ in range(3)]

    overlay = np.asarray(draw_prediction(grey(600, 1000), [Prompt(points=[(9, 9)])], [masks]))

    width = (overlay.shape[1] - 2 * 16) // 3
    centres = [overlay[240, index * (width + 16) + width // 2] for index in range(3)]
    assert len({tuple(centre) for centre in centres}) == 3


def test_panels_of_wide_images_are_stacked() -> None:
    masks = [rectangle(200, 1200, (slice(0, 100), slice(0, 100)))] * 3

    overlay = draw_prediction(grey(200, 1200), [Prompt(points=[(9, 9)])], [masks])

    assert overlay.width == 800
    assert overlay.height > 3 * 133


def test_each_prompt_has_its_own_colour_in_one_panel() -> None:
    boxes = [(100, 100, 400, 400), (600, 100, 900, 400)]
    masks = [[rectangle(1000, 1600, (slice(y0, y1), slice(x0, x1)))] for x0, y0, x1, y1 in boxes]

    overlay = draw_prediction(grey(1000, 1600), [Prompt(box=box) for box in boxes], masks)

    pixels = np.asarray(overlay)
    assert overlay.width == 1600
    assert tuple(pixels[250, 250]) != tuple(pixels[250, 750])


@pytest.mark.parametrize(
    ("size", "longest"), [((48, 64), 1280), ((1500, 1300), 1500), ((1600, 2100), 2048)]
)
def test_overlays_are_scaled_to_display_size(size: tuple[int, int], longest: int) -> None:
    whole = mask_of(np.ones(size, dtype=bool))
    record = AutoMaskRecord(whole, (1, 1), (0, 0, size[1], size[0]))

    overlay = draw_masks(grey(*size), [record])

    scale = longest / max(size)
    height = round(size[0] * scale)
    assert overlay.width == round(size[1] * scale)
    assert height < overlay.height < height * 1.2
    assert changed(overlay, height).all()


def test_small_masks_are_drawn_over_large_ones() -> None:
    large = rectangle(1000, 1600, (slice(0, 1000), slice(0, 1600)))
    small = rectangle(1000, 1600)
    records = [AutoMaskRecord(mask, (1, 1), (0, 0, 1600, 1000)) for mask in (small, large)]

    pixels = np.asarray(draw_masks(grey(1000, 1600), records))

    assert tuple(pixels[400, 600]) != tuple(pixels[800, 1200])


def test_no_masks_and_empty_masks_can_be_drawn() -> None:
    nothing = mask_of(np.zeros((48, 64), dtype=bool))

    without = draw_masks(grey(48, 64), [])
    empty = draw_prediction(grey(48, 64), [Prompt(points=[(9, 9)])], [[nothing]])

    assert not changed(without, 960).any()
    assert empty.width == 1280


def test_the_first_hundred_colours_differ() -> None:
    assert len({colour(index) for index in range(100)}) == 100


def test_the_exif_orientation_applies_to_overlays(samserve: Command, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, out = tmp_path / "rotated.png", tmp_path / "out.png"
    Image.fromarray(grey(1000, 1600)).save(image, exif=exif)

    result = samserve("predict", image, "--point", "900,1500", "--out", out, *FAKE)

    assert result.code == 0
    with Image.open(out) as overlay:
        assert overlay.width == 1000
        assert overlay.height > 1600


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_overlays_are_written_in_the_format_of_their_file_name(
    samserve: Command, image: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out.{suffix}"

    result = samserve("automask", image, "--points-per-side", "2", "--out", out, *FAKE)

    assert result.code == 0
    assert f"wrote {out}" in result.err
    with Image.open(out) as overlay:
        assert overlay.width == 1280

"""Contact sheets of single points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scoring import Case

Array = NDArray[Any]
TILE = 384
COLUMNS = 4


def draw(case: Case) -> Array:
    """Draw the mask in green, the target's outline in red, the point in yellow: BGR ``[T,T,3]``."""
    image = cv2.resize(case.image, (TILE, TILE), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
    mask, target = (
        cv2.resize(part.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
        for part in (case.mask, case.target)
    )
    image[mask > 0] = image[mask > 0] // 2 + np.array([0, 127, 0], np.uint8)
    outlines, _ = cv2.findContours(target, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, (0, 0, 255), 1)
    position = tuple(int(value * TILE / case.image.shape[0]) for value in case.point)
    cv2.circle(image, position, 4, (0, 255, 255), -1)
    return np.asarray(image)


def write_sheet(path: Path, cases: Sequence[Case]) -> None:
    """Write rows of four tiles; an incomplete row is omitted."""
    tiles = [draw(case) for case in cases]
    rows = range(0, len(tiles) - COLUMNS + 1, COLUMNS)
    sheet = np.vstack([np.hstack(tiles[start : start + COLUMNS]) for start in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])


def write_extremes(scores_cases: Sequence[Case], folder: Path, count: int = 8) -> None:
    """Write ``best.jpg``, ``worst.jpg`` and ``typical.jpg`` (evenly from all ranks)."""
    ranked = sorted(scores_cases, key=lambda case: case.iou)
    typical = [ranked[round(position)] for position in np.linspace(0, len(ranked) - 1, count)]
    for name, cases in (
        ("worst", ranked[:count]),
        ("best", ranked[::-1][:count]),
        ("typical", typical),
    ):
        write_sheet(folder / f"{name}.jpg", cases)

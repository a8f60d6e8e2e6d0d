"""Image files of synthetic scenes, written window by window."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from tests.annotate.tiles.scene import Scene

_ROWS = 512


def write_tiff(path: Path, scene: Scene, **profile: Any) -> None:
    """Write a tiled TIFF; *profile* may have the reference system and the transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        opened = rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=scene.size.width,
            height=scene.size.height,
            count=3,
            dtype="uint8",
            tiled=True,
            blockxsize=_ROWS,
            blockysize=_ROWS,
            photometric="rgb",
            **profile,
        )
    with opened as file:
        for top in range(0, scene.size.height, _ROWS):
            bottom = min(top + _ROWS, scene.size.height)
            rows = scene.paint((0, top, scene.size.width, bottom))
            window = Window(0, top, scene.size.width, bottom - top)
            file.write(np.moveaxis(rows, -1, 0), window=window)

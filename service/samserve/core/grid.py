"""Regular point grids over the unit square, the prompts of AutoMask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def point_grid(n: int) -> Float64Array:
    """Return the centres of ``n * n`` equal cells: float64 ``[n*n, 2]``, XY in (0, 1), x fastest.

    Multiply by (width, height) of the crop for points in its frame.  ``n=0`` returns ``[0, 2]``.
    Source: segment-anything utils/amg.py:179-186 (which divides by zero there).
    """
    if n < 0:
        raise ValueError(f"points per side must be 0 or more, not {n}")
    if n == 0:
        return np.empty((0, 2))
    offset = 1 / (2 * n)
    side = np.linspace(offset, 1 - offset, n)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_grids(n: int, n_layers: int, downscale: int) -> list[Float64Array]:
    """Return the grids of crop layers 0 to *n_layers*, with ``int(n / downscale**i)`` per side.

    A layer whose count is 0 has an empty grid: its crops have no prompts and need no embedding.
    Source: segment-anything utils/amg.py:189-197.
    """
    return [point_grid(int(n / downscale**layer)) for layer in range(n_layers + 1)]

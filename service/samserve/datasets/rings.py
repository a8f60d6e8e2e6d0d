"""Several rings as one, for formats without holes, or without parts: joined by bridges.

A bridge is a line from a ring to the next one and the same line back.  It encloses nothing: filled
even-odd, the pixels are those of the rings.  It is as short as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from samserve.datasets.types import Ring
from samserve.types import Array

_MAX_PAIRS = 1 << 24
"""Pairs of corners that are compared for a bridge; for more, it begins at the first corner."""


def joined(rings: Sequence[Ring]) -> Ring:
    """Return one ring for several: an exterior and its holes, or parts that do not overlap."""
    corners = [np.asarray(ring, np.float64) for ring in rings if ring]
    if len(corners) <= 1:
        return rings[0] if rings else ()
    joined = corners[0]
    for ring in corners[1:]:
        joined = _bridged(joined, ring)
    return tuple((float(x), float(y)) for x, y in joined.tolist())


def joined_parts(parts: Iterable[Sequence[Ring]]) -> Ring:
    """Return one ring for all parts of an object with their holes."""
    return joined([joined(part) for part in parts])


def _bridged(first: Array, second: Array) -> Array:
    """Return *first* with *second* after its corner that is nearest to one of *second*."""
    candidates = second if len(first) * len(second) <= _MAX_PAIRS else second[:1]
    offset = first[:, None] - candidates[None]
    distances = np.einsum("abi,abi->ab", offset, offset)
    at, start = np.unravel_index(int(distances.argmin()), distances.shape)
    inserted = [second[start:], second[: start + 1], first[at : at + 1]]
    return np.concatenate([first[: at + 1], *inserted, first[at + 1 :]])

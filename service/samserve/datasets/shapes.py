"""Shapes that annotation tools have, as polygons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from samserve.datasets.types import Annotation, Origin, Polygons

Corner = tuple[float, float]
_ELLIPSE_CORNERS = 72


def rotated(corners: Iterable[Corner], around: Corner, degrees: float) -> Polygons:
    """Return a polygon of corners relative to a point, turned clockwise as displayed."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = around
    ring = tuple((x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in corners)
    return Polygons(((ring,),))


def ellipse(centre: Corner, half_axes: tuple[float, float], degrees: float) -> Polygons:
    """Return a polygon of corners on an ellipse, turned around its centre."""
    turn = 2 * math.pi / _ELLIPSE_CORNERS
    angles = [turn * each for each in range(_ELLIPSE_CORNERS)]
    width, height = half_axes
    corners = [(width * math.cos(each), height * math.sin(each)) for each in angles]
    return rotated(corners, centre, degrees)


def merged(parts: Sequence[Annotation]) -> Annotation:
    """Return one annotation for several whose polygons are parts of one object."""
    if len(parts) == 1:
        return parts[0]
    found = [
        ring
        for each in parts
        if isinstance(each.segmentation, Polygons)
        for ring in each.segmentation.parts
    ]
    origins = {each.origin for each in parts}
    # An object of which one part was changed, or added, is changed.
    origin = parts[0].origin if len(origins) == 1 else Origin.CORRECTED
    return replace(parts[0], segmentation=Polygons(tuple(found)), origin=origin)

"""A project with brush strokes and polygons, and regions as its smart tools make them."""

from __future__ import annotations

from typing import Any

CONFIG = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image" smart="false">
    <Label value="Coin" background="#e0435c"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image" smart="false">
    <Label value="Outline" background="#2f6fdf"/>
  </PolygonLabels>
  <KeyPointLabels name="point" toName="image" smart="true">
    <Label value="Coin" background="#e0435c" showInline="true"/>
    <Label value="Outline" background="#2f6fdf" showInline="true"/>
  </KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true">
    <Label value="Coin" background="#e0435c"/>
    <Label value="Outline" background="#2f6fdf"/>
  </RectangleLabels>
</View>
"""


def point(
    name: str, x: float, y: float, *, label: str = "Coin", positive: bool = True
) -> dict[str, Any]:
    """Return a click at a position in percent, as the interface sends it."""
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [label], "labels": [label]}
    return {**_region(name, "point", "keypointlabels", value), "is_positive": positive}


def box(
    name: str, x: float, y: float, width: float, height: float, *, label: str = "Coin"
) -> dict[str, Any]:
    """Return a rectangle in percent, as the interface sends it."""
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    return _region(name, "box", "rectanglelabels", {**value, "rectanglelabels": [label]})


def _region(name: str, control: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "type": kind,
        "from_name": control,
        "to_name": "image",
        "original_width": 64,
        "original_height": 48,
        "image_rotation": 0,
        "origin": "manual",
        "value": value,
    }

"""CVAT's detector: AutoMask, for ``cvat-cli task auto-annotate`` and ``function run-agent``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from cvat_sdk.auto_annotation import (
    BadFunctionError,
    DetectionFunctionSpec,
    label_spec,
    mask,
    polygon,
)

from samserve.client import AutoMaskOptions, AutoMaskRecord, PolygonOptions, SyncClient
from samserve.cvat.interactor import confidence_of, run_lengths
from samserve.cvat.server import Server, client_of, to_png

if TYPE_CHECKING:
    from PIL import Image

SHAPES = ("mask", "polygon")

_LABEL_ID = 0
_MIN_CORNERS = 3
# The options of AutoMask that a parameter of `cvat-cli` can have: numbers and switches.
_OPTIONS = AutoMaskOptions.__optional_keys__ - {"point_grids", "region_of_interest"}


def create(
    target: str = "127.0.0.1:50051",
    model: str = "",
    label: str = "object",
    shape: str = "mask",
    tolerance: float = 1.0,
    retry_s: float = 120.0,
    **others: Any,
) -> Detector:
    """Return the function; the parameters are those of ``cvat-cli -p``.

    *label* is the label of all objects; the task has one with this name, or the agent's user
    chooses one for it.  *shape* is ``mask`` or ``polygon``; *tolerance* is the error of polygons in
    pixels.  A call is repeated for *retry_s* seconds while the gateway is unavailable: CVAT ends
    a whole task at the first error.  *others* are options of AutoMask, such as
    ``points_per_side``, and parameters of `client_of`.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be mask or polygon, got {shape!r}")
    options = {name: others.pop(name) for name in _OPTIONS & others.keys()}
    server = Server(partial(client_of, target, **others), retry_s)
    return Detector(server, model, label, shape, tolerance, options)


class Detector:
    """A ``DetectionFunction`` of CVAT with one label: AutoMask does not name what it finds."""

    def __init__(
        self,
        server: Server,
        model: str,
        label: str,
        shape: str,
        tolerance: float,
        options: dict[str, Any],
    ) -> None:
        self._server = server
        self._model = model
        self._shape = shape
        self._tolerance = tolerance
        self._options = options
        self.spec = DetectionFunctionSpec(labels=[label_spec(label, _LABEL_ID, type=shape)])

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return a mask for each object, or a polygon for each of its parts, without holes.

        ``context.conf_threshold`` is the lowest predicted IoU, in place of the model's default.
        Raises `BadFunctionError`, also for options that the model does not take.
        """
        as_polygons = self._shape == "polygon" or context.conv_mask_to_poly
        options = dict(self._options)
        if context.conf_threshold is not None:
            options["pred_iou_thresh"] = context.conf_threshold
        if as_polygons:
            options["mask_format"] = "polygons"
            options["polygon_options"] = PolygonOptions(tolerance=self._tolerance)
        file = to_png(image)

        def automask(client: SyncClient) -> list[AutoMaskRecord]:
            return client.automask_all(
                file, model=self._model, orientation="ignore", **options
            ).records

        try:
            records = self._server.call(automask)
        except (TypeError, ValueError) as error:
            raise BadFunctionError(f"samserve: {error}") from error
        return list(_polygons(records) if as_polygons else _masks(records))


def _masks(records: list[AutoMaskRecord]) -> Iterator[Any]:
    for each in records:
        yield mask(_LABEL_ID, run_lengths(each.mask), score=confidence_of(each.mask))


def _polygons(records: list[AutoMaskRecord]) -> Iterator[Any]:
    """Yield the outlines; those of one object are a group."""
    for group, each in enumerate(records, start=1):
        found = each.mask.polygons
        parts = [] if found is None else [part.exterior for part in found.parts]
        rings = [ring for ring in parts if len(ring) >= _MIN_CORNERS]
        for ring in rings:
            yield polygon(
                _LABEL_ID,
                [float(value) for value in ring.ravel().tolist()],
                group=group if len(rings) > 1 else 0,
                score=confidence_of(each.mask),
            )

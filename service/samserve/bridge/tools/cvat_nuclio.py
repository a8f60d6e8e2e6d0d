"""CVAT's Community edition: the routes of a Nuclio dashboard, by which it calls its functions.

The facts are from ``cvat/apps/lambda_manager/views.py`` (`LambdaGateway`, `LambdaFunction`,
`DetectionResultConverter`) and ``cvat-ui/.../tools-control.tsx``.  CVAT asks for all functions,
then for one, and sends the frame, as base64, with every click.  Of a response with an error status,
it shows the status line.  Each model is two functions: an interactor, and AutoMask as a detector.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.bridge import values
from samserve.bridge.caller import Caller
from samserve.bridge.segmenter import Held, ImageSource, Segmenter
from samserve.bridge.tool import REST, BridgeRequest, Reply, Route, json_reply
from samserve.bridge.tools.outlines import simplified
from samserve.calls.status import Failure
from samserve.client import Mask, Model, PolygonOptions, Prompt
from samserve.errors import InvalidRequest, NotFound, ResponseTooLarge
from samserve.http.failures import http_status

FUNCTIONS, INVOCATIONS = "/api/functions", "/api/function_invocations"
PREFIX, EVERYTHING = "samserve.", ".everything"
# The label of what AutoMask finds; CVAT lets the user choose one of the task for it.
LABEL = "object"

# CVAT waits for 120 s, its default.
_DEADLINE_S = 115.0
# The names that CVAT's own routes accept.
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
# Of all masks of a detector together: two bytes each in the response.
_MAX_PIXELS = 50_000_000
# Pixels of polygons; a user of CVAT simplifies them further.
_TOLERANCE = 1.0

Box = tuple[int, int, int, int]


class FunctionNotFound(NotFound):
    """CVAT calls a function that is not in the list."""

    reason = "FUNCTION_NOT_FOUND"


class CvatNuclio:
    """The routes that CVAT calls at the host and port of its settings ``CVAT_NUCLIO_...``."""

    name = "cvat_nuclio"

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    def routes(self) -> Iterable[Route]:
        """See `Tool.routes`."""
        return (
            Route("functions", "GET", FUNCTIONS, self._list),
            Route("function", "GET", f"{FUNCTIONS}/{REST}", self._describe),
            Route("invoke", "POST", INVOCATIONS, self._invoke, deadline_s=_DEADLINE_S),
        )

    def failure(self, failure: Failure) -> Reply:
        """See `Tool.failure`; the status line is what CVAT shows to the user."""
        reply = json_reply({"error": failure.message}, http_status(failure))
        return replace(reply, reason=failure.message)

    async def _list(self, request: BridgeRequest) -> Reply:
        return json_reply(await self._functions(request.caller))

    async def _describe(self, request: BridgeRequest) -> Reply:
        found = (await self._functions(request.caller)).get(request.rest)
        if found is None:
            raise _not_found(request.rest)
        return json_reply(found)

    async def _functions(self, caller: Caller) -> dict[str, Any]:
        catalog = await self._segmenter.models(caller)
        # CVAT offers them in this order.
        models = sorted(catalog.models, key=lambda model: not model.default)
        return {name: about for model in models for name, about in _about(model)}

    async def _invoke(self, request: BridgeRequest) -> Reply:
        name = request.headers.get("x-nuclio-function-name", "")
        if not name.startswith(PREFIX):
            raise _not_found(name)
        model = name.removeprefix(PREFIX)
        body = await request.json()
        source = await asyncio.to_thread(_source, body.get("image"))
        held = await self._segmenter.embed(
            source, request.caller, model=model.removesuffix(EVERYTHING)
        )
        if model.endswith(EVERYTHING):
            return await self._detect(held, body, request.caller)
        prediction = await self._segmenter.predict(held, [_prompt(body, held)], request.caller)
        best = max(prediction.results[0], key=lambda mask: mask.predicted_iou)
        if not best.area:
            raise InvalidRequest("pos_points", "there is no object")
        return await asyncio.to_thread(_interaction, best)

    async def _detect(self, held: Held, body: dict[str, Any], caller: Caller) -> Reply:
        # Every corner of the outline: the pixels inside are exactly those of the mask.
        options: dict[str, Any] = {
            "mask_format": "polygons",
            "polygon_options": PolygonOptions(tolerance=0.0, min_area=0),
        }
        if body.get("threshold") is not None:
            options["pred_iou_thresh"] = values.number(body["threshold"], "threshold")
        result = await self._segmenter.automask(held, caller, **options)
        return await asyncio.to_thread(_detection, [record.mask for record in result.records])


def _source(image: object) -> ImageSource:
    """Return the frame of a request, which is decoded only where it is unknown."""
    text = values.text(image, "image")

    async def load() -> bytes:
        return await asyncio.to_thread(_decode, text)

    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return ImageSource(f"cvat:{digest}", load, orientation="ignore")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest("image", "is not base64") from None


def _not_found(name: str) -> FunctionNotFound:
    shown = name if _NAME.fullmatch(name) else ""
    return FunctionNotFound(f"no function has the name {shown[:100]!r}; see {FUNCTIONS}")


def _about(model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the functions of a model: their names, and what CVAT reads of them."""
    name = f"{PREFIX}{model.name}"
    if not _NAME.fullmatch(name):
        return
    # CVAT takes any text as true: a key that is false must not be there.
    clicks = {
        "type": "interactor",
        "min_pos_points": "0",
        "min_neg_points": "0",
        "startswith_box_optional": "true",
        "help_message": "Click on the object, or drag a box around it; then correct with clicks",
    }
    yield name, _function(name, f"samserve: {model.name}", "Clicks and boxes", clicks)
    if "automask" in model.capabilities:
        spec = [{"id": 0, "name": LABEL, "type": "mask", "attributes": []}]
        everything = {"type": "detector", "spec": json.dumps(spec)}
        title = f"samserve: {model.name}, everything"
        yield (
            name + EVERYTHING,
            _function(name + EVERYTHING, title, "Everything in the image", everything),
        )


def _function(name: str, title: str, description: str, own: dict[str, str]) -> dict[str, Any]:
    annotations = {"name": title, "version": "2", "spec": "", "framework": "samserve", **own}
    return {
        "metadata": {"name": name, "namespace": "nuclio", "annotations": annotations},
        "spec": {"description": description},
        # The port is for the invocation method `direct`, which needs one for each function.
        "status": {"state": "ready", "httpPort": 0},
    }


def _prompt(body: dict[str, Any], held: Held) -> Prompt:
    """Return the prompt for one object; a box is two corners, in a list of their own or not."""
    points = [
        (*_inside(point, field, held), label)
        for field, label in (("pos_points", 1), ("neg_points", 0))
        for point in values.items(body.get(field), field)
    ]
    box = values.items(body.get("obj_bbox"), "obj_bbox")
    if not box:
        return Prompt(points=points)
    corners = [box[:2], box[2:]] if len(box) == 4 else box
    if len(corners) != 2:
        raise InvalidRequest("obj_bbox", "must have two corners")
    (x0, y0), (x1, y1) = (_inside(corner, "obj_bbox", held) for corner in corners)
    return Prompt(points=points, box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))


def _inside(value: object, field: str, held: Held) -> tuple[float, float]:
    """Return the nearest point of the image."""
    point = values.items(value, field)
    if len(point) != 2:
        raise InvalidRequest(field, "must be lists of x and y")
    x, y = (values.number(each, field) for each in point)
    height, width = held.image_size
    return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def _interaction(mask: Mask) -> Reply:
    """Return the rows of the mask within its box, and the box."""
    pixels, box = _cropped(mask)
    rows = b",".join(b"[" + _digits(row) + b"]" for row in pixels)
    return Reply(b'{"mask":[' + rows + b'],"bounds":' + json.dumps(box).encode() + b"}")


def _detection(masks: list[Mask]) -> Reply:
    """Return all masks: pixels within a box and the box, in one list; and one outline of each."""
    parts, total = [], 0
    for mask in masks:
        pixels, box = _cropped(mask)
        total += pixels.size
        if total > _MAX_PIXELS:
            raise ResponseTooLarge(
                "image",
                f"the masks have more than {_MAX_PIXELS} pixels together: use `cvat-cli task"
                " auto-annotate`, whose masks are compressed",
            )
        about = {
            "confidence": f"{min(mask.predicted_iou, 1.0):.4f}",
            "label": LABEL,
            "type": "mask",
            "points": _outline(mask),
        }
        flat = _digits(pixels.ravel()) + b"," + json.dumps(box).encode()[1:-1]
        parts.append(json.dumps(about).encode()[:-1] + b',"mask":[' + flat + b"]}")
    return Reply(b"[" + b",".join(parts) + b"]")


def _cropped(mask: Mask) -> tuple[npt.NDArray[np.bool_], Box]:
    """Return the pixels within the box, and the box: left, top, right and bottom, inclusive."""
    x, y, width, height = (int(value) for value in mask.bbox)
    return mask.decode()[y : y + height + 1, x : x + width + 1], (x, y, x + width, y + height)


def _digits(pixels: npt.NDArray[np.bool_]) -> bytes:
    """Return a row of pixels as the elements of a JSON list; a list of numbers would be slow."""
    text = np.full((len(pixels), 2), ord(","), np.uint8)
    text[:, 0] = pixels
    text[:, 0] += ord("0")
    return text.tobytes()[:-1]


def _outline(mask: Mask) -> list[float]:
    """Return the outline of the largest part, without its holes: CVAT's polygons have neither."""
    if mask.polygons is None or not mask.polygons.parts:
        return []
    ring = simplified(np.asarray(mask.polygons.parts[0].exterior, np.float64), _TOLERANCE)
    return [round(value, 2) for value in ring.ravel().tolist()]

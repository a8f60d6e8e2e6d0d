"""X-AnyLabeling: the protocol of its `Remote-Server` model (X-AnyLabeling-Server, ``/v1/...``).

The facts are from ``anylabeling/services/auto_labeling/remote_server.py`` of X-AnyLabeling 4.2 and
the documentation of X-AnyLabeling-Server.  The client sends the whole file with every click, and
shows it without its EXIF orientation.  It accepts any response that is not an HTTP error: a failure
needs a status from 400, or the client would replace its shapes by none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from samserve.bridge import values
from samserve.bridge.fetching import data_urls
from samserve.bridge.segmenter import Held, ImageSource, Segmenter
from samserve.bridge.settings import BridgeSettings
from samserve.bridge.tool import BridgeRequest, Reply, Route, json_reply
from samserve.bridge.tools.outlines import is_solid, outlines
from samserve.calls.status import Failure
from samserve.client import Mask, Model, PolygonOptions, Prompt
from samserve.errors import InvalidRequest
from samserve.http.failures import http_status

BASE = "/x-anylabeling"
CLICKS, EVERYTHING = "clicks", "everything"
# The label of shapes that the user has not named yet.
LABEL = "AUTOLABEL_OBJECT"

# The desktop program waits for 180 s, its default.
_DEADLINE_S = 175.0
# In pixels; what is finer is not in the mask.
_TOLERANCE = 0.5
_RAW = "data:application/octet-stream;base64,"
_EPSILON = 0.001
_MAX_EPSILON = 0.5

_COMMON = ("mask_fineness_slider", "mask_fineness_value_label")
_BY_TASK = {
    CLICKS: (
        *("button_add_point", "button_remove_point", "button_add_rect", "button_clear"),
        *("button_finish_object", "toggle_preserve_existing_annotations", *_COMMON),
    ),
    EVERYTHING: ("button_run", "toggle_preserve_existing_annotations", *_COMMON),
}
_TASK_NAMES = {CLICKS: "Points and boxes", EVERYTHING: "Everything"}
# Values that the program sets when the model is chosen.  Preserving: it would else delete the
# shapes of an image when a request fails.
_VALUES = {"mask_fineness_slider": 10, "toggle_preserve_existing_annotations": True}


class XAnyLabeling:
    """The routes of X-AnyLabeling; its server URL is that of the bridge with `BASE`."""

    name = "x_anylabeling"

    def __init__(self, segmenter: Segmenter, settings: BridgeSettings) -> None:
        self._segmenter = segmenter
        self._max_bytes = settings.limits.max_image_bytes

    def routes(self) -> Iterable[Route]:
        """See `Tool.routes`."""
        return (
            Route("health", "GET", f"{BASE}/health", self._health, public=True),
            Route("models", "GET", f"{BASE}/v1/models", self._models),
            Route("predict", "POST", f"{BASE}/v1/predict", self._predict, deadline_s=_DEADLINE_S),
        )

    def failure(self, failure: Failure) -> Reply:
        """See `Tool.failure`; the program shows the status line, and nothing of the body."""
        error = {"code": failure.reason, "message": failure.message}
        reply = json_reply({"success": False, "error": error}, http_status(failure))
        return replace(reply, reason=failure.message)

    async def _health(self, request: BridgeRequest) -> Reply:
        return json_reply({"status": "healthy"})

    async def _models(self, request: BridgeRequest) -> Reply:
        catalog = await self._segmenter.models(request.caller)
        # The program selects the first.
        models = sorted(catalog.models, key=lambda model: not model.default)
        return json_reply({"success": True, "data": {each.name: _about(each) for each in models}})

    async def _predict(self, request: BridgeRequest) -> Reply:
        body = await request.json()
        params = values.table(body.get("params"), "params")
        if params.get("text_prompt"):
            raise InvalidRequest("params.text_prompt", "is not supported: use points and boxes")
        marks = values.items(params.get("marks"), "params.marks")
        task = params.get("current_task")
        everything = task == EVERYTHING or (task is None and not marks)
        if not marks and not everything:
            # All marks were removed.
            return _shapes([])
        source = await asyncio.to_thread(self._source, body.get("image"))
        model = values.text(body.get("model") or "", "model")
        held = await self._segmenter.embed(source, request.caller, model=model)
        options: dict[str, Any] = {
            "mask_format": "polygons",
            "polygon_options": PolygonOptions(tolerance=_TOLERANCE),
        }
        if everything:
            result = await self._segmenter.automask(held, request.caller, **options)
            masks = [record.mask for record in result.records if is_solid(record.mask)]
        else:
            prompts = list(_prompts(marks, held))
            prediction = await self._segmenter.predict(held, prompts, request.caller, **options)
            masks = [_best(each) for each in prediction.results]
        return await asyncio.to_thread(_shapes, masks, _epsilon(params))

    def _source(self, image: object) -> ImageSource:
        """Return the image of a request, which is decoded only where it is unknown."""
        text = values.text(image, "image")

        async def load() -> bytes:
            return await asyncio.to_thread(self._decode, text)

        # The text itself: equal texts are equal files, and are not decoded for this.
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        return ImageSource(f"x-anylabeling:{digest}", load, orientation="ignore")

    def _decode(self, text: str) -> bytes:
        url = text if data_urls.is_data_url(text) else _RAW + text
        return data_urls.decode(url, self._max_bytes).body


def _about(model: Model) -> dict[str, Any]:
    """Return what the program shows of a model: its tasks, and the buttons of each."""
    tasks = [CLICKS, *([EVERYTHING] if "automask" in model.capabilities else [])]
    shown = dict.fromkeys(widget for task in tasks for widget in _BY_TASK[task])
    return {
        "display_name": f"samserve: {model.name}",
        "widgets": [{"name": name, "value": _VALUES.get(name)} for name in shown],
        "batch_processing_mode": None,
        "available_tasks": [
            {
                "id": task,
                "name": _TASK_NAMES[task],
                "description": _TASK_NAMES[task],
                "batch_processing_mode": "default" if task == EVERYTHING else None,
                "active_widgets": {widget: {} for widget in _BY_TASK[task]},
            }
            for task in tasks
        ],
    }


def _prompts(marks: list[Any], held: Held) -> Iterator[Prompt]:
    """Yield a prompt for each rectangle, with the points inside it, or one for all points.

    Points outside of all rectangles belong to each of them.
    """
    points, boxes = [], []
    for index, value in enumerate(marks):
        field = f"params.marks[{index}]"
        mark = values.table(value, field)
        label = 1 if mark.get("label", 1) else 0
        kind = mark.get("type")
        if kind == "point":
            points.append((*_inside(_numbers(mark, field, 2), held), label))
        elif kind == "rectangle" and label:
            x0, y0, x1, y1 = _numbers(mark, field, 4)
            (x0, y0), (x1, y1) = _inside((x0, y0), held), _inside((x1, y1), held)
            boxes.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        else:
            raise InvalidRequest(field, "must be a point, or a rectangle on the object")
    if not boxes:
        yield Prompt(points=points)
        return
    free = [point for point in points if not any(_contains(box, point) for box in boxes)]
    for box in boxes:
        own = [point for point in points if _contains(box, point)]
        yield Prompt(points=[*own, *free], box=box)


def _numbers(mark: dict[str, Any], field: str, count: int) -> tuple[float, ...]:
    data = values.items(mark.get("data"), f"{field}.data")
    if len(data) != count:
        raise InvalidRequest(f"{field}.data", f"must have {count} numbers")
    return tuple(values.number(each, f"{field}.data") for each in data)


def _inside(point: tuple[float, ...], held: Held) -> tuple[float, float]:
    """Return the nearest point of the image: the program allows marks at its edge."""
    height, width = held.image_size
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))


def _contains(box: tuple[float, float, float, float], point: tuple[float, float, int]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _best(masks: list[Mask]) -> Mask:
    return max(masks, key=lambda mask: mask.predicted_iou)


def _epsilon(params: dict[str, Any]) -> float:
    """Return the program's "mask fineness", a ratio of the perimeter; 0 keeps every corner."""
    given = params.get("epsilon_factor")
    found = _EPSILON if given is None else values.number(given, "params.epsilon_factor")
    return min(max(found, 0.0), _MAX_EPSILON)


def _shapes(masks: list[Mask], epsilon: float = _EPSILON) -> Reply:
    """Return the outlines of masks; ``replace`` is false, so that other shapes stay."""
    shapes = [
        {
            "label": LABEL,
            "shape_type": "polygon",
            "points": points,
            "score": round(mask.predicted_iou, 4),
        }
        for mask in masks
        if mask.polygons is not None
        for points in outlines(mask.polygons, epsilon, _TOLERANCE)
    ]
    data = {"shapes": shapes, "description": "", "replace": False}
    return Reply(json.dumps({"success": True, "data": data}, separators=(",", ":")).encode())

"""Label Studio's ML backend: its routes, which Label Studio calls below the URL of the model.

Source: label_studio/ml/api_connector.py MLApi, models.py MLBackend; what the interface sends for a
click: web/apps/labelstudio/src/pages/DataManager/DataManager.jsx.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from samserve.bridge.caller import Caller
from samserve.bridge.segmenter import Segmenter
from samserve.bridge.tool import BridgeRequest, Reply, Route, json_reply
from samserve.bridge.tools.label_studio import interactive, preannotation
from samserve.bridge.tools.label_studio.images import TaskImages
from samserve.bridge.tools.label_studio.prompts import Region, regions
from samserve.bridge.tools.label_studio.results import model_version
from samserve.bridge.tools.label_studio.settings import LabelStudioSettings
from samserve.bridge.values import items, table, text
from samserve.calls.status import Failure
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.regions import Json, prediction
from samserve.http.failures import http_status

PATH = "/label-studio"
MAX_TASKS = 10_000


class LabelStudioTool:
    """The ML backend of Label Studio; nothing of a request is kept.

    A request with the regions of a click is answered with masks.  One without is answered with
    nothing at once, and its image is encoded meanwhile; or with everything in the image, if
    `label_studio.predictions` says so.
    """

    name = "label_studio"

    def __init__(
        self, segmenter: Segmenter, images: TaskImages, settings: LabelStudioSettings
    ) -> None:
        self._segmenter = segmenter
        self._images = images
        self._settings = settings

    def routes(self) -> Iterable[Route]:
        """See `Tool.routes`.

        Label Studio sends its webhooks without credentials; they are not read.
        """
        yield Route("health", "GET", f"{PATH}/health", self._health)
        yield Route("setup", "POST", f"{PATH}/setup", self._setup)
        yield Route("predict", "POST", f"{PATH}/predict", self._predict)
        yield Route("validate", "POST", f"{PATH}/validate", self._validate)
        yield Route("versions", "GET", f"{PATH}/versions", self._versions)
        yield Route("webhook", "POST", f"{PATH}/webhook", _nothing, public=True)
        for name in ("train", "job_status", "delete", "duplicate_model"):
            yield Route(name, "POST", f"{PATH}/{name}", _nothing)

    def failure(self, failure: Failure) -> Reply:
        """See `Tool.failure`.

        Of a failed request, Label Studio shows the status line only, so that has the message.
        """
        body = {
            "error": failure.message,
            "reason": failure.reason,
            "request_id": failure.metadata.get("request_id", ""),
        }
        return Reply(
            json.dumps(body).encode(), http_status(failure), reason=f"samserve: {failure.message}"
        )

    async def _health(self, request: BridgeRequest) -> Reply:
        await self._segmenter.models(request.caller)
        return json_reply({"status": "UP", "model_class": "samserve"})

    async def _setup(self, request: BridgeRequest) -> Reply:
        body = await request.json()
        config = await _parsed(body.get("schema"), "schema")
        catalog = await self._segmenter.models(request.caller)
        return json_reply({"model_version": model_version(catalog, _model_of(config))})

    async def _validate(self, request: BridgeRequest) -> Reply:
        body = await request.json()
        _model_of(await _parsed(body.get("config"), "config"))
        return json_reply({})

    async def _versions(self, request: BridgeRequest) -> Reply:
        catalog = await self._segmenter.models(request.caller)
        versions = [model_version(catalog, each.name) for each in catalog.models]
        return json_reply({"versions": versions})

    async def _predict(self, request: BridgeRequest) -> Reply:
        body = await request.json()
        tasks = [table(each, "tasks") for each in items(body.get("tasks"), "tasks")[:MAX_TASKS]]
        config = await _parsed(body.get("label_config"), "label_config")
        context = table(body.get("params") or {}, "params").get("context")
        found = regions(context)
        if found and tasks:
            results: Sequence[Any] = [await self._clicked(tasks[0], config, found, request.caller)]
        elif self._settings.predictions == "automask" and not _is_of_a_click(context):
            results = await self._automask(tasks, config, request.caller)
        else:
            await self._prefetch(tasks, config, request.caller)
            # Not an empty prediction, which Label Studio would store.
            nothing = {"result": []} if _is_of_a_click(context) else []
            results = [nothing] * len(tasks)
        return await asyncio.to_thread(json_reply, {"results": results})

    async def _clicked(
        self, task: Json, config: LabelConfig, found: Sequence[Region], caller: Caller
    ) -> Json:
        masks, model = await interactive.segment(
            self._segmenter, self._images, interactive.Click(task, config, found), caller
        )
        # Label Studio does not read the version of these: the digest is not worth another call.
        return prediction(masks, model)

    async def _prefetch(self, tasks: Sequence[Json], config: LabelConfig, caller: Caller) -> None:
        """Have the image of an opened task encoded; many tasks are not opened, but retrieved."""
        if len(tasks) != 1:
            return
        image, key = config.image_of("")
        source = self._images.source(tasks[0], key)
        await self._segmenter.embed(
            source, caller, model=config.outputs(image)[0].model, wait=False
        )

    async def _automask(
        self, tasks: Sequence[Json], config: LabelConfig, caller: Caller
    ) -> list[Any]:
        catalog = await self._segmenter.models(caller)
        target = preannotation.Target.of(config)
        version = model_version(catalog, target.control.model)
        points = self._settings.automask_points_per_side
        options: dict[str, Any] = {"points_per_side": points} if points else {}
        segment = partial(
            preannotation.everything, self._segmenter, self._images, target, caller, **options
        )
        return await preannotation.within_budget(tasks, segment, version, self._settings)


async def _nothing(request: BridgeRequest) -> Reply:
    return json_reply({})


async def _parsed(value: object, field: str) -> LabelConfig:
    return await asyncio.to_thread(LabelConfig.parse, text(value, field))


def _model_of(config: LabelConfig) -> str:
    """Return the model of a project; raises `InvalidRequest` if it has no place for masks."""
    image, _ = config.image_of("")
    return config.outputs(image)[0].model


def _is_of_a_click(context: object) -> bool:
    """Return whether the interface waits for masks, not Label Studio for predictions."""
    return isinstance(context, Mapping) and "result" in context

"""The routes for CVAT's Community edition, with what its server sends and reads.

CVAT's server cannot run here: `Cvat` sends the requests of its `LambdaGateway` with the same
library, and reads the responses as its `LambdaFunction`, `DetectionResultConverter` and user
interface do (``cvat/apps/lambda_manager/views.py``, ``cvat-ui/.../tools-control.tsx``).
"""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from samserve.bridge.app import RunningBridge
from samserve.bridge.tools import cvat_nuclio
from samserve.client import Client, Prompt
from samserve.engines.fake import FakeEngine

from tests import sample_images
from tests.bridge.serving import bridged, embeds, received_bytes
from tests.secret_leaks import secret_file
from tests.security.credentials import KeyFile
from tests.support.engines import SMALL_MODEL

HEIGHT, WIDTH = 300, 400
FILE = sample_images.png(HEIGHT, WIDTH)
# To find everything in it is cheaper.
SMALL_HEIGHT, SMALL_WIDTH = 60, 80
SMALL_FILE = sample_images.png(SMALL_HEIGHT, SMALL_WIDTH)
CLICKS, EVERYTHING = "samserve.fake", "samserve.fake.everything"


@dataclass(frozen=True)
class Cvat:
    """CVAT's server, as far as it calls functions; ``NUCLIO`` are its settings."""

    host: str
    port: int

    @classmethod
    def of(cls, bridge: RunningBridge) -> Cvat:
        host, _, port = bridge.address.removeprefix("http://").rpartition(":")
        return cls(host, int(port))

    async def call(
        self, method: str, path: str, data: Any = None, **headers: str
    ) -> requests.Response:
        """Send a request as `LambdaGateway._http` does."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        common = {
            "x-nuclio-project-name": "cvat",
            "x-nuclio-function-namespace": "nuclio",
            "x-nuclio-invoke-via": "domain-name",
            "X-Nuclio-Invoke-Timeout": "120s",
        }
        url = f"http://{self.host}:{self.port}{path}"
        return await asyncio.to_thread(
            lambda: requests.request(
                method, url, headers={**common, **named}, timeout=120, json=data
            )
        )

    async def functions(self) -> dict[str, Function]:
        answer = await self.call("get", "/api/functions")
        answer.raise_for_status()
        return {each.id: each for each in map(Function, answer.json().values())}

    async def function(self, name: str) -> Function:
        answer = await self.call("get", f"/api/functions/{name}")
        answer.raise_for_status()
        return Function(answer.json())

    async def invoke(self, name: str, payload: dict[str, Any]) -> requests.Response:
        return await self.call(
            "post",
            "/api/function_invocations",
            payload,
            x_nuclio_function_name=name,
            x_nuclio_path="/",
        )

    async def interact(self, name: str, file: bytes = FILE, **prompts: Any) -> np.ndarray:
        """Return the mask that the user interface shows."""
        answer = await self.invoke(name, payload_of(file, **prompts))
        answer.raise_for_status()
        return shown(answer.json(), HEIGHT, WIDTH)


class Function:
    """What CVAT reads of a function's metadata, by `LambdaFunction`."""

    def __init__(self, data: dict[str, Any]) -> None:
        annotations = data["metadata"]["annotations"]
        assert all(isinstance(value, str) for value in annotations.values())
        self.id = data["metadata"]["name"]
        self.kind = annotations.get("type")
        spec = json.loads(annotations.get("spec") or "[]")
        self.labels = [(label["name"], label.get("type", "any")) for label in spec]
        assert all(label.get("attributes", []) == [] for label in spec)
        self.description = data["spec"]["description"]
        self.port = data["status"].get("httpPort")
        # Of versions before 2.4.
        self.state = data["status"]["state"]
        self.name = annotations.get("name", self.id)
        self.min_pos_points = int(annotations.get("min_pos_points", 1))
        self.min_neg_points = int(annotations.get("min_neg_points", -1))
        self.startswith_box = bool(annotations.get("startswith_box", False))
        self.startswith_box_optional = bool(annotations.get("startswith_box_optional", False))
        self.version = int(annotations.get("version", "1"))


def payload_of(file: bytes = FILE, **prompts: Any) -> dict[str, Any]:
    """Return the payload for an interactor, whose box is null or empty if there is none."""
    image = base64.b64encode(file).decode()
    return {"image": image, "pos_points": [], "neg_points": [], "obj_bbox": None, **prompts}


def shown(response: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return the mask of `InteractorResults`: rows of 0 and 1, within ``bounds`` if there are."""
    rows = np.array(response["mask"])
    assert rows.ndim == 2
    assert set(np.unique(rows)) <= {0, 1}
    left, top, right, bottom = response.get("bounds", (0, 0, width - 1, height - 1))
    full = np.zeros((height, width), bool)
    full[top : bottom + 1, left : right + 1] = rows.astype(bool)
    return full


async def expected(target: str, prompt: Prompt) -> np.ndarray:
    async with Client(target) as client:
        masks = (await client.predict(FILE, [prompt], orientation="ignore")).results[0]
        return max(masks, key=lambda mask: mask.predicted_iou).array


async def test_models_are_an_interactor_and_a_detector_each() -> None:
    async with bridged() as (bridge, _):
        cvat = Cvat.of(bridge)
        listed = await cvat.functions()
        single = {name: await cvat.function(name) for name in listed}

    assert list(listed) == [CLICKS, EVERYTHING]
    assert [vars(each) for each in single.values()] == [vars(each) for each in listed.values()]
    clicks, everything = listed.values()
    assert (clicks.kind, clicks.version, clicks.labels) == ("interactor", 2, [])
    assert (clicks.min_pos_points, clicks.min_neg_points) == (0, 0)
    assert (clicks.startswith_box, clicks.startswith_box_optional) == (False, True)
    assert (clicks.name, clicks.state) == ("samserve: fake", "ready")
    assert (everything.kind, everything.labels) == ("detector", [("object", "mask")])


async def test_clicks_and_boxes_give_the_gateways_mask() -> None:
    async with bridged() as (bridge, gateway):
        cvat = Cvat.of(bridge)
        click = await cvat.interact(CLICKS, pos_points=[[100, 120]])
        refined = await cvat.interact(CLICKS, pos_points=[[100, 120]], neg_points=[[300.5, 20]])
        box = await cvat.interact(CLICKS, obj_bbox=[[150, 200], [50, 60]])
        # As versions before 2.4 send it, and as lists of numbers are sent.
        flat = await cvat.interact(CLICKS, obj_bbox=[50, 60, 150, 200])
        none = await cvat.interact(CLICKS, pos_points=[[100, 120]], obj_bbox=[])
        outside = await cvat.interact(CLICKS, pos_points=[[100, 120], [WIDTH + 5, -3]])
        right = [
            await expected(gateway.address, prompt)
            for prompt in (
                Prompt(points=[(100, 120)]),
                Prompt(points=[(100, 120), (300.5, 20, 0)]),
                Prompt(box=(50, 60, 150, 200)),
                Prompt(points=[(100, 120), (WIDTH, 0)]),
            )
        ]

    for found, mask in zip((click, refined, box, outside), right, strict=True):
        assert np.array_equal(found, mask)
        assert 0 < found.sum() < HEIGHT * WIDTH
    assert np.array_equal(flat, box)
    assert np.array_equal(none, click)


async def test_frame_is_uploaded_once_however_many_clicks() -> None:
    async with bridged() as (bridge, gateway):
        cvat = Cvat.of(bridge)
        await cvat.interact(CLICKS, pos_points=[[100, 120]])
        first = received_bytes(gateway, "Embed"), received_bytes(gateway, "Predict")
        for x in range(5):
            await cvat.interact(CLICKS, pos_points=[[100 + x, 120]])

        assert received_bytes(gateway, "Embed") == first[0] > len(FILE)
        assert received_bytes(gateway, "Predict") < 1000
        assert (embeds(bridge, "encoded"), embeds(bridge, "held")) == (1, 5)

        await cvat.interact(CLICKS, sample_images.png(HEIGHT, WIDTH - 1), pos_points=[[100, 120]])
        assert embeds(bridge, "encoded") == 2


async def test_detector_gives_the_masks_of_automask() -> None:
    """Read as `DetectionResultConverter` does: pixels, then the box, in one list."""
    async with bridged(FakeEngine(model=SMALL_MODEL)) as (bridge, gateway):
        cvat = Cvat.of(bridge)
        image = base64.b64encode(SMALL_FILE).decode()
        answer = (await cvat.invoke(EVERYTHING, {"image": image})).json()
        strict = (await cvat.invoke(EVERYTHING, {"image": image, "threshold": 0.93})).json()
        async with Client(gateway.address) as client:
            records = (await client.automask_all(SMALL_FILE, orientation="ignore")).records

    assert len(answer) == len(records) > 0
    for found, record in zip(answer, records, strict=True):
        assert (found["label"], found["type"]) == ("object", "mask")
        assert 0 <= float(found["confidence"]) <= 1
        left, top, right, bottom = found["mask"][-4:]
        pixels = np.array(found["mask"][:-4]).reshape(bottom - top + 1, right - left + 1)
        full = np.zeros((SMALL_HEIGHT, SMALL_WIDTH), bool)
        full[top : bottom + 1, left : right + 1] = pixels.astype(bool)
        assert np.array_equal(full, record.mask.array)
        corners = np.array(found["points"]).reshape(-1, 2)
        assert len(corners) >= 3
        assert np.all(np.abs(corners.min(axis=0) - (left, top)) <= 1)
        assert np.all(np.abs(corners.max(axis=0) - (right + 1, bottom + 1)) <= 1)
    assert len(strict) != len(answer)


@pytest.mark.parametrize(
    ("payload", "status", "text"),
    [
        ({}, 400, "image"),
        ({"image": 5}, 400, "image: must be text"),
        ({"image": "@@@@", "pos_points": [[1, 1]]}, 400, "image: is not base64"),
        ({"image": "AAAA", "pos_points": [[1, 1]]}, 400, "image"),
        (payload_of(pos_points=[[1]]), 400, "pos_points"),
        (payload_of(pos_points=[["a", 1]]), 400, "pos_points: must be a number"),
        (payload_of(neg_points=5), 400, "neg_points: must be a list"),
        (payload_of(obj_bbox=[[1, 1]]), 400, "obj_bbox: must have two corners"),
        (payload_of(), 400, "prompt"),
    ],
)
async def test_error_is_in_the_status_line_which_cvat_shows(
    payload: dict[str, Any], status: int, text: str
) -> None:
    async with bridged() as (bridge, _):
        answer = await Cvat.of(bridge).invoke(CLICKS, payload)

    assert answer.status_code == status
    with pytest.raises(requests.HTTPError, match=text):
        answer.raise_for_status()


async def test_click_on_nothing_is_an_error_as_cvat_needs_a_mask() -> None:
    async with bridged() as (bridge, _):
        answer = await Cvat.of(bridge).invoke(CLICKS, payload_of(neg_points=[[100, 120]]))

    assert (answer.status_code, answer.reason) == (400, "pos_points: there is no object")


async def test_masks_of_a_detector_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat_nuclio, "_MAX_PIXELS", 1000)
    image = base64.b64encode(SMALL_FILE).decode()
    async with bridged(FakeEngine(model=SMALL_MODEL)) as (bridge, _):
        answer = await Cvat.of(bridge).invoke(EVERYTHING, {"image": image})

    assert answer.status_code == 400
    assert "more than 1000 pixels together: use `cvat-cli task auto-annotate`" in answer.reason


async def test_model_whose_name_cvat_does_not_accept_is_no_function() -> None:
    async with bridged(FakeEngine(model=replace(SMALL_MODEL, name="a/b"))) as (bridge, _):
        assert await Cvat.of(bridge).functions() == {}


async def test_unknown_functions_are_not_found() -> None:
    async with bridged() as (bridge, _):
        cvat = Cvat.of(bridge)
        answers = [
            await cvat.call("get", "/api/functions/other"),
            await cvat.call("get", "/api/functions/a%0d%0ab"),
            await cvat.invoke("other", payload_of(pos_points=[[1, 1]])),
            await cvat.invoke("samserve.other", payload_of(pos_points=[[1, 1]])),
            await cvat.call("post", "/api/function_invocations", payload_of()),
        ]

    assert [answer.status_code for answer in answers] == [404] * 5


async def test_image_over_the_limit_is_not_sent_to_the_gateway() -> None:
    async with bridged(limits={"max_image_bytes": 1000}) as (bridge, gateway):
        answer = await Cvat.of(bridge).invoke(CLICKS, payload_of(pos_points=[[1, 1]]))
        sent = received_bytes(gateway, "Embed")

    assert (answer.status_code, sent) == (400, 0)
    assert "limits.max_image_bytes" in answer.reason


async def test_lost_embedding_is_encoded_again() -> None:
    async with bridged() as (bridge, gateway):
        cvat = Cvat.of(bridge)
        await cvat.interact(CLICKS, pos_points=[[100, 120]])
        async with Client(gateway.address) as client:
            embedding = await client.embed(FILE, orientation="ignore")
            assert await client.delete_embedding(embedding)

        mask = await cvat.interact(CLICKS, pos_points=[[100, 120]])

        assert mask.any()
        assert embeds(bridge, "encoded") == 2


async def test_key_of_samserve_comes_from_the_bridge_as_cvat_sends_none(tmp_path: Path) -> None:
    """The host of CVAT's settings may contain a name and a token, which errors would show."""
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("cvat", "embed", "predict")
    secret_file(tmp_path / "credential").write_text(key)
    server = {"auth": {"api_keys_file": keys.path}}
    async with bridged(
        FakeEngine(), server=server, tokens={"credential_file": tmp_path / "credential"}
    ) as (bridge, _):
        assert (await Cvat.of(bridge).interact(CLICKS, pos_points=[[100, 120]])).any()

    async with bridged(FakeEngine(), server=server) as (bridge, _):
        cvat = Cvat.of(bridge)
        without = await cvat.call("get", "/api/functions")
        with_token = Cvat(f"cvat:{key}@{cvat.host}", cvat.port)
        assert without.status_code == 401
        assert list(await with_token.functions()) == [CLICKS, EVERYTHING]

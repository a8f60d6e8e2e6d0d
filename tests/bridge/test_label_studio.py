"""The ML backend as Label Studio calls it: recorded requests, and a stub of its server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from samserve.app import Running
from samserve.bridge.app import RunningBridge
from samserve.client import Client, Prompt
from samserve.engines.fake import FakeEngine

from tests import sample_images
from tests.bridge.label_studio import RECORDED, StubServer, mask_of, recorded, stub_server
from tests.bridge.serving import body_of, bridged, call, data_url, embeds
from tests.http.wire import JSON, Response, connected
from tests.secret_leaks import secret

PATH = "/label-studio"
HEIGHT, WIDTH = 48, 64
IMAGE = sample_images.png(HEIGHT, WIDTH)
AUTOMASK = {"predictions": "automask", "automask_points_per_side": 4}
CLICKS = ("point", "two_points", "outline", "box")


@pytest.fixture
def server() -> Iterator[StubServer]:
    """The stub has the image of the recorded task."""
    with stub_server() as stub:
        stub.images[recorded("point")["tasks"][0]["data"]["image"]] = IMAGE
        yield stub


@asynccontextmanager
async def backend(
    server: StubServer,
    folder: Path,
    *,
    token: str = "",
    engine: FakeEngine | None = None,
    **options: Any,
) -> AsyncIterator[tuple[RunningBridge, Running]]:
    """Run a bridge for the stub."""
    path = folder / "token"
    path.write_text((token or server.legacy) + "\n")
    section = {"url": server.url, "token_file": str(path), **options}
    async with bridged(engine, label_studio=section) as running:
        yield running


async def send(bridge: RunningBridge, name: str, body: object = None) -> Response:
    """Send a recorded request, with another body if there is one."""
    found = RECORDED[name]
    return await call(
        bridge,
        found["path"],
        found["body"] if body is None else body,
        method=found["method"],
    )


async def results(bridge: RunningBridge, name: str, body: object = None) -> list[Any]:
    response = await send(bridge, name, body)
    assert response.status == 200, response.body
    return list(body_of(response)["results"])


async def test_every_recorded_request_succeeds(server: StubServer, tmp_path: Path) -> None:
    async with backend(server, tmp_path) as (bridge, _):
        for name in RECORDED:
            response = await send(bridge, name)
            assert (name, response.status) == (name, 200)


async def test_setup_and_versions_name_the_model_and_its_weights(
    server: StubServer, tmp_path: Path
) -> None:
    async with backend(server, tmp_path) as (bridge, _):
        assert body_of(await send(bridge, "health")) == {"status": "UP", "model_class": "samserve"}
        assert body_of(await send(bridge, "setup")) == {"model_version": "fake fake-1"}
        assert body_of(await send(bridge, "versions")) == {"versions": ["fake fake-1"]}


async def test_click_returns_the_mask_that_the_gateway_predicts(
    server: StubServer, tmp_path: Path
) -> None:
    prompts = {
        "point": Prompt(points=[(16, 19.2, 1)]),
        "two_points": Prompt(points=[(16, 19.2, 1), (32, 28.8, 0)]),
        "box": Prompt(box=(6.4, 9.6, 38.4, 38.4)),
    }
    async with backend(server, tmp_path) as (bridge, gateway), Client(gateway.address) as client:
        for name, prompt in prompts.items():
            (prediction,) = await results(bridge, name)
            (region,) = prediction["result"]
            predicted = (await client.predict(IMAGE, [prompt])).results[0]
            best = max(predicted, key=lambda mask: mask.predicted_iou)
            np.testing.assert_array_equal(mask_of(region), best.array)
            assert best.area > 0
            assert region["score"] == prediction["score"] == round(best.predicted_iou, 5)


async def test_region_names_control_image_label_and_size(
    server: StubServer, tmp_path: Path
) -> None:
    async with backend(server, tmp_path) as (bridge, _):
        (brush,) = (await results(bridge, "point"))[0]["result"]
        (polygon,) = (await results(bridge, "outline"))[0]["result"]

    for region in (brush, polygon):
        assert region["to_name"] == "image"
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
        assert region["image_rotation"] == 0
    assert (brush["type"], brush["from_name"]) == ("brushlabels", "brush")
    assert brush["value"]["brushlabels"] == ["Coin"]
    assert (polygon["type"], polygon["from_name"]) == ("polygonlabels", "polygon")
    assert polygon["value"]["polygonlabels"] == ["Outline"]
    corners = np.array(polygon["value"]["points"])
    assert corners.min() >= 0
    assert corners.max() <= 100
    # Around the recorded point.
    assert (corners.min(axis=0) < (25, 40)).all()
    assert (corners.max(axis=0) > (25, 40)).all()


async def test_several_objects_have_regions_of_their_own(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("box")
    (first,) = body["params"]["context"]["result"]
    second = {**first, "id": "second", "value": {**first["value"], "rectanglelabels": ["Outline"]}}
    body["params"]["context"]["result"].append(second)
    async with backend(server, tmp_path) as (bridge, _):
        found = (await results(bridge, "box", body))[0]["result"]

    assert [each["type"] for each in found] == ["brushlabels", "polygonlabels"]
    assert len({each["id"] for each in found}) == 2


async def test_image_is_fetched_and_encoded_once_for_all_clicks(
    server: StubServer, tmp_path: Path
) -> None:
    async with backend(server, tmp_path) as (bridge, _):
        await asyncio.gather(*(results(bridge, name) for name in CLICKS * 3))

        assert (embeds(bridge, "encoded"), len(server.paths("/data/"))) == (1, 1)


async def test_masks_of_many_annotators_are_those_of_their_images(
    server: StubServer, tmp_path: Path
) -> None:
    sizes = [(40 + number, 80 - number) for number in range(20)]
    server.images |= {
        f"/data/upload/1/{number}.png": sample_images.png(*size)
        for number, size in enumerate(sizes)
    }

    async def click(bridge: RunningBridge, annotator: int, number: int) -> None:
        body = recorded("point")
        body["tasks"][0] |= {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}}
        (region,) = body["params"]["context"]["result"]
        region["value"] |= {"x": 5.0 * annotator + 20, "y": 50}
        (made,) = (await results(bridge, "point", body))[0]["result"]
        height, width = sizes[number]
        assert (made["original_height"], made["original_width"]) == (height, width)
        assert mask_of(made)[height // 2, round(width * region["value"]["x"] / 100)]

    async with backend(server, tmp_path) as (bridge, _):
        work = [(annotator, number) for number in range(20) for annotator in range(10)]
        await asyncio.gather(*(click(bridge, *each) for each in work))

        assert (embeds(bridge, "encoded"), len(server.paths("/data/"))) == (20, 20)


async def test_request_without_a_click_encodes_the_image_and_predicts_nothing(
    server: StubServer, tmp_path: Path
) -> None:
    for name, nothing in {"removed_point": {"result": []}, "retrieve_predictions": []}.items():
        async with backend(server, tmp_path) as (bridge, _):
            assert await results(bridge, name) == [nothing]
            assert embeds(bridge, "encoded") == 1
            await results(bridge, "point")
            assert (embeds(bridge, "encoded"), embeds(bridge, "held")) == (1, 1)


async def test_opening_a_task_does_not_wait_for_the_encoder(
    server: StubServer, tmp_path: Path
) -> None:
    engine, encoder = FakeEngine(), asyncio.Event()
    async with backend(server, tmp_path, engine=engine) as (bridge, _):
        engine.hold(encoder)
        # Of the warm-up.
        before = engine.counts["encode_finished"]
        assert await results(bridge, "retrieve_predictions") == [[]]
        click = asyncio.create_task(results(bridge, "point"))
        assert engine.counts["encode_finished"] == before
        encoder.set()
        assert (await click)[0]["result"]
        assert engine.counts["encode_finished"] == before + 1


async def test_predictions_of_many_tasks_are_empty_without_fetching(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("retrieve_predictions")
    body["tasks"] *= 30
    async with backend(server, tmp_path) as (bridge, _):
        assert await results(bridge, "retrieve_predictions", body) == [[]] * 30

    assert server.paths("/data/") == []


async def test_automask_predicts_everything_if_it_is_chosen(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("retrieve_predictions")
    body["tasks"] *= 3
    async with backend(server, tmp_path, **AUTOMASK) as (bridge, _):
        found = await results(bridge, "retrieve_predictions", body)
        clicked = await results(bridge, "removed_point")

    assert [each["model_version"] for each in found] == ["fake fake-1"] * 3
    assert all(len(each["result"]) > 1 for each in found)
    areas = [int(mask_of(each).sum()) for each in found[0]["result"]]
    assert areas == sorted(areas, reverse=True)
    assert len({each["id"] for each in found[0]["result"]}) == len(areas)
    assert clicked == [{"result": []}]


async def test_tasks_without_time_or_image_get_no_prediction(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("retrieve_predictions")
    missing = {**body["tasks"][0], "data": {"image": "/data/upload/1/missing.png"}}
    body["tasks"] = [*body["tasks"], missing]
    async with backend(server, tmp_path, **AUTOMASK) as (bridge, _):
        found = await results(bridge, "retrieve_predictions", body)
        assert found[0]["result"]
        assert found[1] == []
        body["tasks"] = [missing]
        assert (await send(bridge, "retrieve_predictions", body)).status == 400
    options = {**AUTOMASK, "automask_budget_s": 1e-9}
    async with backend(server, tmp_path, **options) as (bridge, _):
        assert await results(bridge, "retrieve_predictions") == [[]]


@pytest.mark.parametrize("kind", ["legacy", "personal"])
async def test_either_kind_of_token_fetches_uploads(
    server: StubServer, tmp_path: Path, kind: str
) -> None:
    async with backend(server, tmp_path, token=getattr(server, kind)) as (bridge, _):
        await results(bridge, "point")
        refreshed = len(server.paths("/api/token/refresh/"))
        body = recorded("point")
        body["tasks"][0]["data"]["image"] = other = "/data/upload/1/other.png"
        server.images[other] = IMAGE
        await results(bridge, "point", body)

    # A token of five minutes is used again.
    assert refreshed == len(server.paths("/api/token/refresh/")) == (kind == "personal")


async def test_cloud_storage_is_resolved_by_label_studio_and_gets_no_token(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("point")
    body["tasks"][0]["data"]["image"] = "s3://bucket/image.png"
    with stub_server() as storage:
        server.redirects["/tasks/1/resolve/"] = f"{storage.url}/signed.png"
        async with backend(server, tmp_path) as (bridge, _):
            response = await send(bridge, "point", body)
            # The storage is on loopback, which no rule allows.
            assert (response.status, body_of(response)["reason"]) == (400, "URL_NOT_ALLOWED")
        assert storage.requests == []
        port = {"allowed_networks": "127.0.0.0/8", "allowed_ports": "*"}
        path = tmp_path / "token"
        section = {"url": server.url, "token_file": str(path)}
        async with bridged(label_studio=section, fetch=port) as (bridge, _):
            await send(bridge, "point", body)
    assert server.paths("/tasks/") == ["/tasks/1/resolve/?fileuri=czM6Ly9idWNrZXQvaW1hZ2UucG5n"] * 2
    assert [(each[1], each[2]) for each in storage.requests] == [("/signed.png", "")]


@pytest.mark.parametrize(
    "path", ["/api/projects/1/", "/user/logout", "/data/../api/users/", "/data/%2e%2e/api/users/"]
)
async def test_token_is_sent_for_images_only(server: StubServer, tmp_path: Path, path: str) -> None:
    body = recorded("point")
    body["tasks"][0]["data"]["image"] = path
    async with backend(server, tmp_path) as (bridge, _):
        response = await send(bridge, "point", body)

    assert body_of(response)["reason"] == "URL_NOT_ALLOWED"
    assert server.requests == []


async def test_image_in_a_data_url_and_of_several_needs_no_server() -> None:
    body = recorded("point")
    body["tasks"][0]["data"] = {"image": ["/data/first.png", data_url(IMAGE)]}
    for region in body["params"]["context"]["result"]:
        region["item_index"] = 1
    async with bridged() as (bridge, _):
        (region,) = (await results(bridge, "point", body))[0]["result"]
        assert region["item_index"] == 1
        response = await send(bridge, "point")

    assert response.status == 400
    assert "label_studio.url is not set" in body_of(response)["error"]


async def test_status_line_has_the_message_which_label_studio_shows(
    server: StubServer, tmp_path: Path
) -> None:
    body = recorded("point")
    (region,) = body["params"]["context"]["result"]
    region["value"]["keypointlabels"] = ["M\u00fcnze\r\nx: y"]
    data = json.dumps(body).encode()
    async with backend(server, tmp_path) as (bridge, _), connected(bridge.address) as wire:
        length = ("content-length", str(len(data)))
        wire.send(wire.head(f"{PATH}/predict", [JSON, length]) + data)
        line = await wire.reader.readline()

    expected = "has no <BrushLabels> or <PolygonLabels> with the label 'M?nze\\r\\nx: y'"
    assert line.decode() == f"HTTP/1.1 400 samserve: label_config: {expected}\r\n"


async def test_wrong_password_is_refused_with_401_but_webhooks_need_none(
    server: StubServer, tmp_path: Path
) -> None:
    known, unknown = secret("password-of-the-annotators"), secret("another-password")
    digest = hashlib.sha256(known.encode()).hexdigest()
    entry = f'[[tokens]]\nname = "team"\nsha256 = "{digest}"\ncredential = "key"\n'
    path = tmp_path / "tokens"
    path.write_text(entry)
    async with bridged(tokens={"file": str(path)}) as (bridge, _):
        for password, status in ((known, 200), (unknown, 401), ("", 401)):
            basic = base64.b64encode(f"samserve:{password}".encode()).decode()
            headers = [("authorization", f"Basic {basic}")] if password else []
            for name in ("health", "setup", "removed_point"):
                found = RECORDED[name]
                if name == "removed_point" and status == 200:
                    continue
                response = await call(
                    bridge, found["path"], found["body"], headers, method=found["method"]
                )
                assert (name, response.status) == (name, status)
        assert (await send(bridge, "webhook")).status == 200


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": "x"},
        {"tasks": [1]},
        {"label_config": None},
        {"label_config": "<View/>"},
        {"params": 1},
        {"params": {"context": {"result": 5}}},
        {"tasks": [{"id": 1}]},
        {"tasks": [{"id": 1, "data": {"image": 5}}]},
        {"tasks": [{"id": "1", "data": {"image": "s3://a/b"}}]},
        {"tasks": [{"id": 1, "data": {"image": "//]"}}]},
        {"tasks": [{"id": 1, "data": {"image": "/data/\ud800.png"}}]},
    ],
)
async def test_malformed_request_is_refused(
    server: StubServer, tmp_path: Path, change: dict[str, Any]
) -> None:
    async with backend(server, tmp_path) as (bridge, _):
        response = await send(bridge, "point", {**recorded("point"), **change})

    assert (response.status, body_of(response)["reason"]) == (400, "INVALID_ARGUMENT")


async def test_own_authority_is_trusted_for_tokens_too(server: StubServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    token = tmp_path / "token"
    token.write_text(server.personal)
    section = {"url": server.url.replace("http:", "https:"), "token_file": str(token)}
    async with bridged(label_studio=section, fetch={"ca_file": str(ca_file)}) as (bridge, _):
        assert (await results(bridge, "point"))[0]["result"]
    async with bridged(label_studio=section) as (bridge, _):
        response = await send(bridge, "point")

    assert (response.status, body_of(response)["reason"]) == (503, "LABEL_STUDIO_UNAVAILABLE")

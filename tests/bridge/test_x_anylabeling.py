"""The protocol of X-AnyLabeling: models and their buttons, prompts, polygons, errors."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.engines.fake import FakeEngine

from tests import sample_images
from tests.bridge.serving import (
    X,
    body_of,
    bridged,
    call,
    click,
    data_url,
    point,
    received_bytes,
    rectangle,
    shapes,
)
from tests.http.wire import connected
from tests.security.credentials import KeyFile
from tests.support.engines import SMALL_MODEL

FILE = sample_images.png(300, 400)


def box_of(shape: dict[str, Any]) -> tuple[float, ...]:
    corners = np.array(shape["points"])
    return (*corners.min(axis=0), *corners.max(axis=0))


def centre_of(shape: dict[str, Any]) -> tuple[float, float]:
    x0, y0, x1, y1 = box_of(shape)
    return (x0 + x1) / 2, (y0 + y1) / 2


async def test_models_are_those_of_the_gateway_with_the_buttons_of_each_task() -> None:
    async with bridged() as (bridge, _):
        answer = body_of(await call(bridge, f"{X}/v1/models"))

    assert answer["success"] is True
    assert list(answer["data"]) == ["fake"]
    model = answer["data"]["fake"]
    assert model["display_name"] == "samserve: fake"
    clicks, everything = model["available_tasks"]
    assert (clicks["id"], clicks["batch_processing_mode"]) == ("clicks", None)
    assert {"button_add_point", "button_remove_point", "button_add_rect"} <= set(
        clicks["active_widgets"]
    )
    assert (everything["id"], everything["batch_processing_mode"]) == ("everything", "default")
    assert "button_run" in everything["active_widgets"]
    assert "button_run" not in clicks["active_widgets"]
    shown = {widget["name"]: widget["value"] for widget in model["widgets"]}
    assert set(shown) == set(clicks["active_widgets"]) | set(everything["active_widgets"])
    # The program would else delete all shapes of an image when a request fails.
    assert shown["toggle_preserve_existing_annotations"] is True


async def test_health_needs_neither_a_token_nor_a_gateway(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("")
    async with bridged(tokens={"file": tokens}) as (bridge, gateway):
        before = received_bytes(gateway, "ListModels")
        answer = await call(bridge, f"{X}/health")

    assert (answer.status, body_of(answer)) == (200, {"status": "healthy"})
    assert before == 0


async def test_points_and_boxes_become_polygons_around_the_mask() -> None:
    async with bridged() as (bridge, _):
        (disc,) = await shapes(bridge, click(FILE, point(100, 120)))
        (moved,) = await shapes(bridge, click(FILE, point(100, 120), point(140, 120)))
        (kept,) = await shapes(bridge, click(FILE, point(100, 120), point(140, 120, 0)))
        (ellipse,) = await shapes(bridge, click(FILE, rectangle(200, 200, 60, 40)))

    assert disc["shape_type"] == "polygon"
    assert disc["label"] == "AUTOLABEL_OBJECT"
    assert disc["points"][0] == disc["points"][-1]
    assert 0 < disc["score"] <= 1
    assert np.allclose(centre_of(disc), (100, 120), atol=2)
    assert np.allclose(centre_of(moved), (120, 120), atol=2)
    assert np.allclose(centre_of(kept), (100, 120), atol=2)
    # The corners may come in any order.
    assert np.allclose(centre_of(ellipse), (130, 120), atol=2)


async def test_each_rectangle_is_an_object_with_the_points_inside_it() -> None:
    async with bridged() as (bridge, _):
        first, second = await shapes(
            bridge,
            click(FILE, rectangle(20, 20, 120, 120), rectangle(250, 50, 350, 150), point(60, 90)),
        )

    assert np.allclose(centre_of(first), (60, 90), atol=2)
    assert np.allclose(centre_of(second), (300, 100), atol=2)


async def test_marks_at_the_edge_are_moved_into_the_image() -> None:
    async with bridged() as (bridge, _):
        (found,) = await shapes(bridge, click(FILE, point(401, -1)))

    assert box_of(found)[1] == 0
    assert box_of(found)[2] == 400


async def test_everything_is_what_the_task_asks_for_and_no_marks_are_nothing() -> None:
    small = sample_images.png(60, 80)
    async with bridged(FakeEngine(model=SMALL_MODEL)) as (bridge, gateway):
        nothing = await shapes(bridge, click(small, current_task="clicks"))
        uploaded = received_bytes(gateway, "Embed")
        # Marks that an earlier task has left do not matter.
        all_of_it = await shapes(bridge, click(small, point(9, 9), current_task="everything"))
        without_tasks = await shapes(bridge, click(small))

    assert nothing == []
    assert uploaded == 0
    assert len(all_of_it) > 1
    assert all_of_it == without_tasks


async def test_fineness_is_a_ratio_of_the_perimeter() -> None:
    counts = []
    async with bridged() as (bridge, _):
        for epsilon in (0.0, 0.001, 0.02, 0.1):
            request = click(FILE, point(200, 150), epsilon_factor=epsilon)
            (found,) = await shapes(bridge, request)
            counts.append(len(found["points"]))

    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] >= 4


@pytest.mark.parametrize(
    ("kind", "mime"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "jpeg")],
)
async def test_files_of_every_format_of_the_program_are_segmented(kind: str, mime: str) -> None:
    request = click(sample_images.encode(sample_images.noise(300, 400), kind), point(100, 120))
    request["image"] = request["image"].replace("image/png", f"image/{mime}")
    async with bridged() as (bridge, _):
        (found,) = await shapes(bridge, request)

    assert np.allclose(centre_of(found), (100, 120), atol=2)


async def test_image_may_be_base64_alone() -> None:
    request = click(FILE, point(100, 120))
    request["image"] = base64.b64encode(FILE).decode()
    async with bridged() as (bridge, _):
        (found,) = await shapes(bridge, request)

    assert np.allclose(centre_of(found), (100, 120), atol=2)


async def test_orientation_of_the_file_is_ignored_as_the_program_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = io.BytesIO()
    Image.fromarray(sample_images.noise(300, 400)).save(rotated, "JPEG", exif=exif)
    async with bridged() as (bridge, _):
        (found,) = await shapes(bridge, click(rotated.getvalue(), point(390, 20)))

    # As displayed elsewhere, the image is only 300 pixels wide.
    assert box_of(found)[2] == 400


@pytest.mark.parametrize(
    ("change", "status", "code", "text"),
    [
        ({"image": None}, 400, "INVALID_ARGUMENT", "image: must be text"),
        ({"image": "data:image/png;base64,!!"}, 400, "DOWNLOAD_NOT_IMAGE", "not base64"),
        ({"image": data_url(b"no image at all")}, 400, "IMAGE_UNREADABLE", "not an image"),
        ({"image": data_url(FILE[:90])}, 400, "IMAGE_UNREADABLE", "image"),
        ({"model": "other"}, 404, "MODEL_NOT_FOUND", "other"),
        ({"model": 1}, 400, "INVALID_ARGUMENT", "model: must be text"),
        ({"params": []}, 400, "INVALID_ARGUMENT", "params: must be an object"),
        ({"params": {"marks": 1}}, 400, "INVALID_ARGUMENT", "marks: must be a list"),
        ({"params": {"marks": [point("a", 1)]}}, 400, "INVALID_ARGUMENT", "must be a number"),  # type: ignore[arg-type]
        ({"params": {"marks": [rectangle(1, 2)]}}, 400, "INVALID_ARGUMENT", "must have 4 numbers"),
        ({"params": {"marks": [{"type": "text"}]}}, 400, "INVALID_ARGUMENT", "must be a point"),
        ({"params": {"text_prompt": "dog"}}, 400, "INVALID_ARGUMENT", "points and boxes"),
        ({"params": {"marks": [rectangle(9, 9, 9, 9)]}}, 400, "INVALID_ARGUMENT", "box"),
        ({"params": {"marks": [point(1, 1)] * 65}}, 400, "INVALID_ARGUMENT", "points"),
    ],
)
async def test_errors_have_a_status_and_a_text_in_the_status_line(
    change: dict[str, Any], status: int, code: str, text: str
) -> None:
    async with bridged() as (bridge, _):
        answer = await call(bridge, f"{X}/v1/predict", {**click(FILE, point(9, 9)), **change})

    assert (answer.status, body_of(answer)["success"]) == (status, False)
    error = body_of(answer)["error"]
    assert error["code"] == code
    assert text in error["message"]


async def test_status_line_has_the_text_that_the_program_shows() -> None:
    async with bridged() as (bridge, _), connected(bridge.address) as wire:
        body = b"{}"
        wire.send(wire.head(f"{X}/v1/predict", [("content-length", str(len(body)))]) + body)
        line = await wire.reader.readline()

    assert line == b"HTTP/1.1 400 image: must be text\r\n"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
async def test_body_must_be_a_json_object(body: bytes) -> None:
    async with bridged() as (bridge, _), connected(bridge.address) as wire:
        answer = await wire.request(f"{X}/v1/predict", body)

    assert answer.status == 400
    assert "JSON" in body_of(answer)["error"]["message"]


async def test_token_of_the_program_is_the_credential(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict")
    engine = FakeEngine()
    async with bridged(engine, server={"auth": {"api_keys_file": keys.path}}) as (bridge, gateway):
        for token, status in ((key, 200), ("samserve_wrong", 401), ("", 401)):
            answer = await call(
                bridge, f"{X}/v1/predict", click(FILE, point(9, 9)), [("token", token)]
            )
            assert answer.status == status
        assert received_bytes(gateway, "Embed") < 1.1 * len(FILE) + 500

    assert body_of(answer)["error"]["code"] == "UNAUTHENTICATED"

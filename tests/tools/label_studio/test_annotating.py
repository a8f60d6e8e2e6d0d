"""Annotators in a real Label Studio, whose smart tools the bridge answers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from samserve.client import Polygon, Polygons, Prompt, SyncClient

from harness.bridge import BridgeServer
from harness.gateway import GatewayServer
from harness.label_studio import LabelStudioServer
from harness.triton.ports import free_ports
from tests.bridge.label_studio import mask_of
from tests.secret_leaks import secret
from tests.support.waiting import until_sync
from tests.tools.label_studio.conftest import COINS_SIZE
from tests.tools.label_studio.labeling import Labeling
from tests.tools.label_studio.projects import CONFIG

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]

# Centres of coins, and the box of another.
FIRST, SECOND, THIRD = (44, 124), (102, 125), (154, 127)
BOX = (76, 170, 128, 222)


def drawn(polygons: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the pixels of COCO polygons whose corners are pixels, bool ``[h, w]``."""
    mask = np.zeros(COINS_SIZE, np.uint8)
    for each in polygons:
        cv2.fillPoly(mask, [np.array(each).reshape(-1, 2).round().astype(np.int32)], 1)
    return mask > 0


def inside(corners: np.ndarray) -> np.ndarray:
    """Return the pixels whose centres are inside a polygon, bool ``[h, w]``."""
    part = Polygon(corners.astype(np.float32))
    return Polygons(COINS_SIZE, (part,), iou=1.0).decode()


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def exported(server: LabelStudioServer, project: int, form: str) -> dict[str, Any]:
    archive = zipfile.ZipFile(io.BytesIO(server.export(project, form)))
    (name,) = [each for each in archive.namelist() if each.endswith(".json")]
    found: dict[str, Any] = json.loads(archive.read(name))
    return found


async def test_clicks_and_boxes_become_masks_that_are_exported_as_coco(
    server: LabelStudioServer,
    gateway: GatewayServer,
    bridge: BridgeServer,
    labeling: Labeling,
    coins: bytes,
) -> None:
    project = server.create_project("Clicks", CONFIG)
    (task,) = server.upload(project, {"coins.png": coins})
    server.connect(project, f"{bridge.tools_url}/label-studio")
    await labeling.open(project, task)
    await labeling.keep_label()

    await labeling.choose("point", "Coin", "key-point-tool")
    await labeling.click(*FIRST)
    (one,) = await labeling.suggested()
    await labeling.click(FIRST[0] + 8, FIRST[1] + 8)
    (two,) = await labeling.suggested()
    await labeling.accept()
    await labeling.choose("box", "Coin", "rectangle-tool")
    await labeling.drag(*BOX)
    (boxed,) = await labeling.suggested()
    await labeling.accept()
    await labeling.choose("point", "Outline", "key-point-tool")
    await labeling.click(*SECOND)
    (outline,) = await labeling.suggested()
    await labeling.accept()
    await labeling.save()

    # The masks that were shown are those of the server, at the coins.
    with SyncClient(gateway.target) as client:
        prompts = [
            Prompt(points=[(*FIRST, 1)]),
            Prompt(points=[(*FIRST, 1), (FIRST[0] + 8, FIRST[1] + 8, 1)]),
            Prompt(box=BOX),
            Prompt(points=[(*SECOND, 1)]),
        ]
        results = client.predict(coins, prompts).results
    masks = [max(each, key=lambda mask: mask.predicted_iou).array for each in results]
    for region, mask in zip((one, two, boxed), masks, strict=False):
        assert iou(mask_of(region), mask) >= 0.99
    assert masks[0][FIRST[::-1]]
    assert 800 < masks[0].sum() < 2500
    assert not masks[2][FIRST[::-1]]
    (saved,) = server.tasks(project)[0]["annotations"]
    # Label Studio adds the label of the tool, which is still selected, to each region.
    kinds = [each["type"] for each in saved["result"] if each["from_name"] in ("brush", "polygon")]
    assert sorted(kinds) == ["brushlabels", "brushlabels", "polygonlabels"]
    assert len(outline["value"]["points"]) > 3

    brushes = exported(server, project, "BRUSH_TO_COCO")
    found = [drawn(each["segmentation"]) for each in brushes["annotations"]]
    for mask in (masks[1], masks[2]):
        assert max(iou(mask, each) for each in found) >= 0.99
    percent = np.array(outline["value"]["points"]) / 100 * COINS_SIZE[::-1]
    assert iou(inside(percent), masks[3]) >= 0.98
    # Label Studio rounds the corners of polygons to pixels.
    found = [
        inside(np.array(each["segmentation"]).reshape(-1, 2)) for each in brushes["annotations"]
    ]
    assert max(iou(masks[3], each) for each in found) >= 0.95


async def test_what_is_wrong_is_shown_when_a_model_is_connected(
    server: LabelStudioServer, gateway: GatewayServer, tmp_path: Path
) -> None:
    password = secret("password-of-the-annotators")
    digest = hashlib.sha256(password.encode()).hexdigest()
    tokens = tmp_path / "tokens"
    tokens.write_text(f'[[tokens]]\nname = "team"\nsha256 = "{digest}"\ncredential = "key"\n')
    points = '<KeyPointLabels name="point" toName="image"><Label value="Coin"/></KeyPointLabels>'
    without = f'<View><Image name="image" value="$image"/>{points}</View>'
    settings = {"gateways.targets": gateway.target, "tokens.file": tokens}
    with BridgeServer(settings) as bridge:
        url = f"{bridge.tools_url}/label-studio"
        project = server.create_project("Connected", CONFIG)
        with pytest.raises(AssertionError, match="authentication parameters were"):
            server.connect(project, url, secret("another-password"))
        assert server.is_connected(server.connect(project, url, password))
        project = server.create_project("Without masks", without)
        with pytest.raises(AssertionError, match="has no <BrushLabels> or <PolygonLabels>"):
            server.connect(project, url, password)


async def test_project_of_twenty_images_is_preannotated_and_one_corrected(
    server: LabelStudioServer,
    gateway: GatewayServer,
    bridge: BridgeServer,
    access_token: Path,
    labeling: Labeling,
    coins: bytes,
) -> None:
    project = server.create_project("Predictions", CONFIG)
    tasks = server.upload(project, {f"coins-{number}.png": coins for number in range(20)})
    server.connect(project, f"{bridge.tools_url}/label-studio")
    command = [
        *(sys.executable, "-m", "samserve", "label-studio", "annotate", "--url", server.url),
        *("--project", str(project), "--access-token-file", str(access_token)),
        *("--server", gateway.target, "--points-per-side", "8"),
    ]

    first = await asyncio.to_thread(subprocess.check_output, command, text=True)
    again = await asyncio.to_thread(subprocess.check_output, command, text=True)

    assert first.splitlines()[::2] == ["annotated: 20", "skipped: 0"]
    assert again.splitlines()[::2] == ["annotated: 0", "skipped: 20"]
    predictions = [task["predictions"] for task in server.tasks(project)]
    assert [len(each) for each in predictions] == [1] * 20
    found = predictions[0][0]["result"]
    assert len(found) >= 5

    await labeling.open(project, tasks[0])
    shown = await labeling.regions()
    assert len(shown) == len(found)
    largest = shown[0]["id"]
    await labeling.delete_first()
    await labeling.choose("point", "Coin", "key-point-tool")
    await labeling.click(*FIRST)
    await labeling.suggested()
    await labeling.accept()
    await labeling.save()

    annotated = {task["id"]: task["annotations"] for task in server.tasks(project)}
    (corrected,) = annotated.pop(tasks[0])
    assert not any(annotated.values())
    ids = {each["id"] for each in corrected["result"]}
    kept = {each["id"] for each in found} - {largest}
    assert kept < ids
    assert len(ids) == len(found)
    (added,) = [each for each in corrected["result"] if each["id"] not in kept]
    assert mask_of(added)[FIRST[::-1]]


async def test_clicks_work_again_after_gateway_and_bridge_were_killed(
    server: LabelStudioServer,
    access_token: Path,
    labeling: Labeling,
    coins: bytes,
) -> None:
    gateway = GatewayServer({}, port=free_ports(1)[0])
    settings = {
        "gateways.targets": gateway.target,
        "label_studio.url": server.url,
        "label_studio.token_file": access_token,
    }
    project = server.create_project("Failures", CONFIG)
    (task,) = server.upload(project, {"coins.png": coins})
    with gateway, BridgeServer(settings) as bridge:
        backend = server.connect(project, f"{bridge.tools_url}/label-studio")
        await labeling.open(project, task)
        await labeling.keep_label()
        await labeling.choose("point", "Coin", "key-point-tool")
        await labeling.click(*FIRST)
        await labeling.suggested()
        await labeling.accept()

        gateway.kill()
        answer = await labeling.click(*SECOND)
        assert "503 Server Error: samserve: no samserve server is reachable" in answer["errors"][0]
        assert not server.is_connected(backend)
        # The point is still there, and the page works.
        assert len({each["id"] for each in await labeling.regions()}) == 2
        gateway.start()
        await asyncio.to_thread(until_sync, lambda: server.is_connected(backend))
        await _continues(labeling, (SECOND[0], SECOND[1] + 10))

        bridge.kill()
        answer = await labeling.click(*THIRD)
        assert "Connection refused" in answer["errors"][0]
        assert not server.is_connected(backend)
        bridge.start()
        assert server.is_connected(backend)
        await _continues(labeling, (THIRD[0], THIRD[1] + 10))


async def _continues(labeling: Labeling, position: tuple[int, int]) -> None:
    """Click again, which shows a mask without a reload of the page."""
    answer = await labeling.click(*position)
    assert answer["data"]["result"]
    (shown,) = await labeling.suggested()
    assert mask_of(shown)[position[::-1]]
    await labeling.accept()

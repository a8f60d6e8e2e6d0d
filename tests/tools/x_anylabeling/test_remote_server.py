"""The client code of X-AnyLabeling itself drives the bridge, with the default model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.app import running
from samserve.client import Client, Polygon, Polygons, Prompt
from samserve.engines.fake import FakeEngine
from skimage import data

from tests.bridge.serving import bridging, point, received_bytes, rectangle
from tests.conftest import settings_with
from tests.engine_choice import default_model_settings
from tests.secret_leaks import secret
from tests.security.credentials import KeyFile
from tests.support.engines import SMALL_MODEL

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-x-anylabeling" / "bin" / "python"
DRIVER, WINDOW = (Path(__file__).with_name(name) for name in ("driver.py", "window.py"))

pytestmark = pytest.mark.slow


class Program:
    """A running driver."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        await self._process.stdin.drain()

    async def call(self, do: str, **given: Any) -> dict[str, Any]:
        """Send a command and return the answer to it."""
        assert self._process.stdout is not None
        await self.send({"do": do, **given})
        async for line in self._process.stdout:
            kind, _, text = line.decode().partition(" ")
            if kind == "ANSWER":
                return dict(json.loads(text))
        raise AssertionError("the program has ended; its standard error has the reason")


@asynccontextmanager
async def program(
    folder: Path, address: str, key: str = "", script: Path = DRIVER, *arguments: Path
) -> AsyncIterator[Program]:
    """Run the client of the program, or another *script*, with its settings in *folder*."""
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, script, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"HOME": str(folder), "QT_QPA_PLATFORM": "offscreen", "PYTHONDONTWRITEBYTECODE": "1"},
        limit=1 << 24,
    )
    try:
        driver = Program(process)
        await driver.send({"server_url": f"{address}/x-anylabeling", "api_key": key, "timeout": 60})
        yield driver
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest.fixture
def coins(tmp_path: Path) -> Path:
    path = tmp_path / "coins.jpg"
    Image.fromarray(data.coins()).convert("RGB").save(path, quality=95)
    return path


def pixels(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels inside a polygon, bool ``[h, w]``."""
    ring = np.array(shape["points"], np.float32)
    return Polygons(size, (Polygon(ring),), 1.0).decode()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


async def test_clicks_and_boxes_give_the_masks_of_the_gateway(coins: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict")
    auth = {"auth": {"api_keys_file": keys.path}}
    async with AsyncExitStack() as stack:
        settings = settings_with(**default_model_settings(), **auth)
        gateway = await stack.enter_async_context(running(settings))
        bridge = await stack.enter_async_context(bridging(gateway.address))
        client = await stack.enter_async_context(Client(gateway.address, token=key))
        driver = await stack.enter_async_context(program(tmp_path, bridge.address, key))

        chosen = await driver.call("choose")
        clicked = await driver.call("predict", image=str(coins), marks=[point(160, 50)])
        uploaded = received_bytes(gateway, "Embed")
        marks = [point(160, 50), point(200, 50, 0)]
        refined = await driver.call("predict", image=str(coins), marks=marks)
        boxed = await driver.call("predict", image=str(coins), marks=[rectangle(130, 25, 182, 76)])
        assert received_bytes(gateway, "Embed") == uploaded
        in_memory = await driver.call(
            "predict", image=str(coins), path=False, marks=[point(160, 50)]
        )
        nothing = await driver.call("predict", image=str(coins))
        embedding = await client.embed(coins, orientation="ignore")
        prediction = await client.predict(
            embedding,
            [
                Prompt(points=[(160, 50)]),
                Prompt(points=[(160, 50), (200, 50, 0)]),
                Prompt(box=(130, 25, 182, 76)),
            ],
        )

    assert list(chosen["models"]) == [embedding.model]
    # The program does not offer clicks as a batch.
    assert chosen["batch"] is None
    answers = (clicked, refined, boxed)
    for answer, (mask, *_) in zip(answers, prediction.results, strict=True):
        assert (answer["messages"], answer["replace"]) == ([], False)
        (shape,) = answer["shapes"]
        assert (shape["label"], shape["type"]) == ("AUTOLABEL_OBJECT", "polygon")
        assert iou(pixels(shape, embedding.image_size), mask.array) > 0.97
        assert mask.array[50, 160]
    assert len(in_memory["shapes"]) == 1
    assert nothing["shapes"] == []


async def test_everything_failures_and_a_gateway_that_stops(coins: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key = keys.add("acme", "embed", "predict", "automask")
    wrong = secret("samserve_wrong_key_of_test")
    settings = settings_with(auth={"api_keys_file": keys.path})
    async with AsyncExitStack() as stack:
        async with running(settings, engine=FakeEngine(model=SMALL_MODEL)) as gateway:
            bridge = await stack.enter_async_context(bridging(gateway.address))
            driver = await stack.enter_async_context(program(tmp_path, bridge.address, key))
            chosen = await driver.call("choose", task="everything")
            everything = await driver.call("predict", image=str(coins))
            text = await driver.call("predict", image=str(coins), text="coin")
            async with program(tmp_path, bridge.address, wrong) as other:
                assert (await other.call("choose"))["models"] == {}
        stopped = await driver.call("predict", image=str(coins), marks=[point(160, 50)])

    assert chosen["batch"] == "default"
    assert len(everything["shapes"]) >= 1
    (line,) = text["messages"]
    assert "400 Client Error: params.text_prompt: is not supported" in line
    (line,) = stopped["messages"]
    assert "503 Server Error: no samserve server is reachable at the moment" in line
    # Otherwise the program would delete the shapes of the image.
    assert (text["replace"], stopped["replace"]) == (False, False)


async def test_window_shows_buttons_and_masks_and_keeps_shapes_if_a_request_fails(
    coins: Path, tmp_path: Path
) -> None:
    # The program opens the annotations beside an image.
    own = {"label": "coin", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]}
    annotations = {"imagePath": coins.name, "imageData": None, "shapes": [own]}
    size = {"imageHeight": 303, "imageWidth": 384, "version": "4.2.1", "flags": {}}
    coins.with_suffix(".json").write_text(json.dumps({**annotations, **size}))
    engine = FakeEngine(model=SMALL_MODEL)
    async with AsyncExitStack() as stack:
        async with running(settings_with(), engine=engine) as gateway:
            bridge = await stack.enter_async_context(bridging(gateway.address))
            window = await stack.enter_async_context(
                program(tmp_path, bridge.address, "", WINDOW, coins)
            )
            chosen = await window.call("choose")
            clicked = await window.call("click", button="button_add_point", x=160, y=150)
            refined = await window.call("click", button="button_remove_point", x=20, y=20)
            everything = await window.call("task", name="everything")
            found = await window.call("run")
        await window.call("task", name="clicks")
        failed = await window.call("click", button="button_add_point", x=160, y=150)

    assert chosen["tasks"] == ["Points and boxes", "Everything"]
    assert {"button_add_point", "button_remove_point", "button_add_rect"} <= set(chosen["buttons"])
    assert "button_run" in everything["buttons"]
    assert "button_add_point" not in everything["buttons"]
    for state in (clicked, refined, found):
        labels = [shape["label"] for shape in state["shapes"]]
        assert labels.count("coin") == 1
        assert "AUTOLABEL_OBJECT" in labels
    assert "503 Server Error: no samserve server is reachable" in "".join(failed["messages"])
    assert "coin" in [shape["label"] for shape in failed["shapes"]]

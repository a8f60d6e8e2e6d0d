"""The real `cvat-cli` with samserve's functions, a stub of CVAT's server, and a real gateway."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from samserve.app import Running
from samserve.client import Client, Prompt

from tests import engine_choice
from tests.conftest import serving_models
from tests.tools.cvat.cvat_api import FUNCTION, LABEL, TASK, TOKEN, CvatApi

ROOT = Path(__file__).parents[3]
CLI = ROOT / ".venv-cvat" / "bin" / "cvat-cli"
FUNCTION_CALLS = Path(__file__).with_name("function_calls.py")
INTERACTOR, DETECTOR = "samserve.cvat.interactor", "samserve.cvat.detector"

pytestmark = pytest.mark.slow


class Gateway:
    """A gateway with the default model that a test stops and starts again, at the same port."""

    def __init__(self) -> None:
        self._running = AsyncExitStack()
        self.target = ""
        # Of each gateway that was stopped, without the one at its start.
        self.encodes: list[int] = []
        self._service: Running | None = None

    async def start(self) -> None:
        port = int(self.target.rpartition(":")[2] or 0)
        serving = serving_models(server={"port": port})
        self._service, _ = await self._running.enter_async_context(serving)
        self.target = self._service.address

    async def stop(self) -> None:
        assert self._service is not None
        self.encodes.append(engine_choice.run_count(self._service, "encoder") - 1)
        await self._running.aclose()


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    await found.start()
    yield found
    await found.stop()


async def run(api: CvatApi, *command: str) -> tuple[int | None, str]:
    """Run `cvat-cli` with a stub of its server; return its status and what it writes."""
    service = {"PYTHONPATH": str(ROOT / "service"), "CVAT_ACCESS_TOKEN": TOKEN}
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *(str(CLI), f"--server-host=http://127.0.0.1:{api.port}", *command),
            env={"PATH": "/usr/bin:/bin", "HOME": home, **service},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    return process.returncode, output.decode()


def function(module: str, *parameters: str) -> list[str]:
    """Return the arguments of `cvat-cli` for a function and its parameters."""
    return [f"--function-module={module}", *(f"-p{each}" for each in parameters)]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg_lying_on_its_side(pixels: np.ndarray) -> bytes:
    """Return a file whose EXIF orientation CVAT's client does not apply."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def click(number: str, frame: int = 0, **prompts: Any) -> dict[str, Any]:
    """Return a request of CVAT's user interface."""
    empty = {"pos_points": [], "neg_points": [], "obj_bbox": []}
    return {"id": number, "type": "interact", "task": TASK, "frame": frame, **empty, **prompts}


def mask_of(points: list[float], size: tuple[int, int]) -> np.ndarray:
    """Decode CVAT's run lengths, which begin with background, within their box."""
    *runs, x0, y0, x1, y1 = (int(value) for value in points)
    bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    full = np.zeros(size, bool)
    full[y0 : y1 + 1, x0 : x1 + 1] = bits.reshape(y1 - y0 + 1, x1 - x0 + 1)
    return full


def after(api: CvatApi, number: str, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Call a coroutine function when an agent acquires a request."""
    loop, before = asyncio.get_running_loop(), api.before

    def acquire(params: dict[str, Any]) -> None:
        before(params)
        if params["id"] == number:
            asyncio.run_coroutine_threadsafe(begin(), loop).result()

    api.before = acquire


async def expected(client: Client, pixels: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Return the mask that the gateway itself returns."""
    masks = (await client.predict(pixels, [prompt])).results[0]
    return max(masks, key=lambda mask: mask.predicted_iou).array


async def test_interactor_serves_the_agent_over_a_restart_of_the_gateway() -> None:
    coins, coffee = skimage.data.coins(), skimage.data.coffee()
    requests = [
        click("one", pos_points=[[150.5, 60.5]]),
        click("two", pos_points=[[150.5, 60.5]], neg_points=[[300, 20]]),
        click("box", obj_bbox=[[175, 85], [130, 40]]),
        click("other", frame=1, pos_points=[[300, 200], [900, 200]]),
        click("down", pos_points=[[150.5, 60.5]]),
        click("back", pos_points=[[150.5, 60.5]]),
        click("none"),
        click("roi", roi=[100, 0, 300, 200], pos_points=[[50.5, 60.5]]),
    ]
    api = CvatApi([png(coins), jpeg_lying_on_its_side(coffee)], requests=requests)
    async with gateway() as samserve:
        with api.serving():
            after(api, "down", samserve.stop)
            after(api, "back", samserve.start)
            module = function(INTERACTOR, f"target=str:{samserve.target}", "retry_s=float:0.5")
            created = await run(api, "function", "create-native", "samserve", *module)
            ended = await run(api, "function", "run-agent", "--burst", str(FUNCTION), *module)
        async with Client(samserve.target) as client:
            right = {
                "one": await expected(client, coins, Prompt(points=[(150.5, 60.5)])),
                "two": await expected(client, coins, Prompt(points=[(150.5, 60.5), (300, 20, 0)])),
                "box": await expected(client, coins, Prompt(box=(130, 40, 175, 85))),
                "roi": await expected(client, coins[:200, 100:300], Prompt(points=[(50.5, 60.5)])),
            }
            right["back"] = right["one"]
            coffee_file = pixels_of(jpeg_lying_on_its_side(coffee))
            right["other"] = await expected(
                client, coffee_file, Prompt(points=[(300, 200), (600, 200)])
            )

    assert (created[0], ended[0]) == (0, 0), created[1] + ended[1]
    assert api.function["kind"] == "interactor"
    assert (api.function["min_pos_points"], api.function["min_neg_points"]) == (0, 0)
    assert api.function["startswith_box_optional"] is True
    assert set(api.completed) == {"one", "two", "box", "other", "back", "roi"}
    for number, mask in right.items():
        (shape,) = api.completed[number]["shapes"]
        assert shape["type"] == "mask"
        assert np.array_equal(mask_of(shape["points"], mask.shape), mask), number
        assert 0 < float(shape["attributes"][0]["value"]) <= 1
    assert set(api.failed) == {"down", "none"}
    assert "samserve" in api.failed["down"]
    assert "a point or a box is needed" in api.failed["none"]
    # A frame is loaded and encoded once, however many prompts there are: coins and coffee before
    # the restart; then coins, its region, and the four images that this test itself sends.
    assert (api.frame_downloads, api.unknown) == (3, [])
    assert samserve.encodes[0] == 2


def pixels_of(file: bytes) -> np.ndarray:
    """Decode a file without its orientation, as CVAT's client does."""
    return np.asarray(Image.open(io.BytesIO(file)))


async def test_lost_frame_is_an_error_with_advice_and_an_overloaded_gateway_is_called_again() -> (
    None
):
    """The function itself, in CVAT's environment: an agent would wait for minutes."""
    async with gateway() as samserve:
        process = await asyncio.create_subprocess_exec(
            *(str(CLI.with_name("python")), str(FUNCTION_CALLS), samserve.target),
            env={"PYTHONPATH": str(ROOT / "service")},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()

    first, second, *last = output.decode().splitlines()
    assert "its image is no longer kept; start the agent again" in first
    assert second == "1 mask"
    assert last == ["called 3 times", "samserve: busy after 1 time"]


async def test_detector_annotates_a_task_with_masks() -> None:
    coins = skimage.data.coins()
    api = CvatApi([png(coins), png(coins[::-1].copy()), png(coins[:, ::-1].copy())])
    async with gateway() as samserve:
        module = function(
            DETECTOR, f"target=str:{samserve.target}", "label=str:coin", "points_per_side=int:6"
        )
        with api.serving():
            status, output = await run(api, "task", "auto-annotate", str(TASK), *module)
        async with Client(samserve.target) as client:
            result = await client.automask_all(coins, points_per_side=6)

    assert status == 0, output
    (uploaded,) = api.uploaded
    shapes = [shape for shape in uploaded["shapes"] if shape["frame"] == 0]
    assert {shape["frame"] for shape in uploaded["shapes"]} == {0, 1, 2}
    assert len(shapes) == len(result.records) > 3
    for shape, record in zip(shapes, result.records, strict=True):
        assert (shape["type"], shape["label_id"], shape["source"]) == ("mask", LABEL["id"], "auto")
        assert np.array_equal(mask_of(shape["points"], coins.shape), record.mask.array)
        assert shape["score"] == min(record.mask.predicted_iou, 1.0)
    assert api.unknown == []


async def test_detector_serves_the_agent_with_polygons_over_a_threshold() -> None:
    coins = skimage.data.coins()
    request = {"id": "all", "type": "annotate_task", "task": TASK, "threshold": 0.3}
    request |= {"conv_mask_to_poly": True, "mapping": {"object": {"name": "coin"}}}
    api = CvatApi([png(coins)], requests=[request], label_type="polygon")
    async with gateway() as samserve:
        module = function(DETECTOR, f"target=str:{samserve.target}", "points_per_side=int:6")
        with api.serving():
            created = await run(api, "function", "create-native", "samserve", *module)
            ended = await run(api, "function", "run-agent", "--burst", str(FUNCTION), *module)
        async with Client(samserve.target) as client:
            fewer = await client.automask_all(coins, points_per_side=6)
            result = await client.automask_all(coins, points_per_side=6, pred_iou_thresh=0.3)

    assert (created[0], ended[0]) == (0, 0), created[1] + ended[1]
    assert api.function["labels_v2"] == [{"name": "object", "attributes": [], "type": "mask"}]
    assert api.failed == {}
    shapes = api.completed["all"]["annotations"]["shapes"]
    assert {shape["type"] for shape in shapes} == {"polygon"}
    assert all(shape["score"] >= 0.3 for shape in shapes)
    assert len(shapes) >= len(result.records) > len(fewer.records)


async def test_parameters_and_errors_of_the_gateway_are_shown() -> None:
    api = CvatApi([png(skimage.data.coins())])
    async with gateway() as samserve:
        target = f"target=str:{samserve.target}"
        with api.serving():
            unknown = function(INTERACTOR, target, "modell=str:x")
            model = function(DETECTOR, target, "label=str:coin", "model=str:missing")
            answers = await asyncio.gather(
                run(api, "function", "create-native", "samserve", *unknown),
                run(api, "task", "auto-annotate", str(TASK), *model),
            )

    assert "unexpected keyword argument 'modell'" in answers[0][1]
    assert "samserve: " in answers[1][1]
    assert "missing" in answers[1][1]
    assert all(status for status, _ in answers)
    assert api.uploaded == []

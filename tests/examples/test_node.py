"""What only the Node.js client has: a retry policy of gRPC, and a command."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from samserve.client import Client, Prompt

from tests.client import scripted
from tests.client.scripted import ScriptedServicer
from tests.conftest import serving_models
from tests.examples.expected import PHOTO
from tests.examples.node import NodeClient
from tests.examples.programs import EXAMPLES, program

pytestmark = pytest.mark.slow
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_unavailable_server_is_called_again() -> None:
    servicer = ScriptedServicer(UNAVAILABLE, UNAVAILABLE)
    async with (
        scripted.serving(servicer) as target,
        NodeClient().scenario("models", target) as result,
    ):
        assert result == {"error": None}

    assert len(servicer.calls) == 3


async def test_server_that_stays_unavailable_is_an_error_after_four_attempts() -> None:
    servicer = ScriptedServicer(*[UNAVAILABLE] * 9)
    async with (
        scripted.serving(servicer) as target,
        NodeClient().scenario("models", target) as result,
    ):
        assert result["error"]["code"] == "UNAVAILABLE"

    assert len(servicer.calls) == 4


async def test_large_image_is_sent_again() -> None:
    servicer = ScriptedServicer(UNAVAILABLE)
    # Larger than the default buffer for retries.
    image = base64.b64encode(bytes(3 << 20)).decode()
    async with (
        scripted.serving(servicer) as target,
        NodeClient().scenario("automask", target, photo=image) as result,
    ):
        assert result["summaries"] == [0]

    assert [len(each.request.image.encoded) for each in servicer.calls] == [3 << 20] * 2


async def test_stream_that_has_begun_is_not_restarted() -> None:
    servicer = ScriptedServicer(UNAVAILABLE, events_before=1)
    async with (
        scripted.serving(servicer) as target,
        NodeClient().scenario("beginAutomask", target, photo="") as result,
    ):
        assert result["error"]["code"] == "UNAVAILABLE"

    assert len(servicer.calls) == 1


async def test_token_is_not_sent_to_other_machines_without_tls() -> None:
    async with NodeClient().scenario("refused", "198.51.100.1:1", {"token": "smsv_a_b"}) as result:
        assert result == {"refused": "TypeError"}


async def test_names_that_messages_do_not_have_are_errors() -> None:
    async with NodeClient().scenario("misnamed", "127.0.0.1:1") as result:
        assert result == {
            "box": "TypeError: a box has the numbers xMin, yMin, xMax and yMax",
            "parameter": "TypeError: AutoMask has no parameter points_per_side; "
            "names are in camel case",
        }


async def demo(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command; return its exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        program("node"),
        str(EXAMPLES / "node" / "demo.js"),
        *arguments,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_demo_draws_the_masks_of_a_point(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    async with serving_models() as (service, _):
        code, out, err = await demo(tmp_path, service.address, "photo.jpg", "200,120")
        wrong = await demo(tmp_path, service.address, "photo.jpg", "9999,120")
        async with Client(service.address) as client:
            prompt = Prompt(points=[(200, 120)])
            found = await client.predict(PHOTO, [prompt], multimask="all", low_res_logits=True)
            best = max(found.results[0], key=lambda mask: mask.predicted_iou)
            again = Prompt(points=[(200, 120)], mask=best.low_res_logits)
            refined = await client.predict(found.embedding, [again], multimask="single")

    assert (code, err) == (0, "")
    assert f"refined.png: {refined.results[0][0].area} pixels" in out
    for name, mask in (("mask.png", best), ("refined.png", refined.results[0][0])):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.mode == "1"
            np.testing.assert_array_equal(np.asarray(drawn), mask.array)
    assert wrong[0] == 1
    assert "prompts[0].points[0].x: must be from 0 to 451" in wrong[2]
    assert "at " not in wrong[2].splitlines()[-1]

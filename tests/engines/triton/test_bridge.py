"""Annotators who click over the bridge while Triton is killed and started again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from samserve.app import running

from tests import engine_choice, sample_images
from tests.bridge.serving import X, body_of, bridging, call, click, point
from tests.conftest import settings_with
from tests.support.waiting import until

IMAGES = [
    sample_images.encode(sample_images.noise(240, 320, seed=number), "PNG") for number in range(3)
]


async def test_clicks_go_on_when_triton_has_restarted() -> None:
    triton = engine_choice.triton_server(engine_choice.drawing_repository())
    async with AsyncExitStack() as stack:
        settings = settings_with(**engine_choice.drawing_settings("triton"))
        gateway = await stack.enter_async_context(running(settings))
        bridge = await stack.enter_async_context(bridging(gateway.address))
        masks, failures, over = 0, [], asyncio.Event()
        requests = [click(image, point(100, 100)) for image in IMAGES]
        expected = [body_of(await call(bridge, f"{X}/v1/predict", each)) for each in requests]

        async def annotator(number: int) -> None:
            nonlocal masks
            while not over.is_set():
                number = (number + 1) % len(requests)
                answer = await call(bridge, f"{X}/v1/predict", requests[number])
                if answer.status == 200:
                    assert body_of(answer) == expected[number]
                    masks += 1
                else:
                    failures.append((answer.status, body_of(answer)["error"]["code"]))
                    await asyncio.sleep(0.02)

        annotators = [asyncio.create_task(annotator(number)) for number in range(4)]
        await until(lambda: masks > 8)
        triton.kill()
        await until(lambda: len(failures) > 4)
        triton.start()
        before = masks
        await until(lambda: masks > before + 8)
        over.set()
        await asyncio.gather(*annotators)

        assert {status for status, _ in failures} == {503}, failures
        # No image was encoded again.
        assert engine_choice.run_count(gateway, "encoder") == 1 + len(IMAGES)

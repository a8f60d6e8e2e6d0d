"""Annotators who click while gateways and bridges are stopped and started again."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from samserve.app import running
from samserve.bridge.app import RunningBridge

from tests.bridge.serving import X, body_of, bridging, call, click, point
from tests.bridge.test_segmenter import ColourEngine, centre_of, coloured
from tests.conftest import settings_with
from tests.support.waiting import until

PLACES = [(60, 60), (180, 60), (60, 180), (180, 180)]
QUICK = {"retry_interval_s": 0.01}


@dataclass
class Annotators:
    """Click without a pause, each on the images in turn, and count the answers."""

    bridge: RunningBridge | None
    answers: Counter[str] = field(default_factory=Counter)

    async def click(self, first: int) -> None:
        for number in itertools.count(first):
            place = PLACES[number % len(PLACES)]
            if self.bridge is None:
                await asyncio.sleep(0.005)
                continue
            request = click(coloured(*place), point(100, 100))
            try:
                answer = await call(self.bridge, f"{X}/v1/predict", request)
            except (OSError, asyncio.IncompleteReadError):
                self.answers["no answer"] += 1
                continue
            body = body_of(answer)
            if answer.status == 200:
                assert np.allclose(centre_of(body["data"]["shapes"]), place, atol=3)
                self.answers["mask"] += 1
            else:
                self.answers[f"{answer.status} {body['error']['code']}"] += 1

    async def wait_for(self, kind: str, count: int) -> None:
        """Wait for *count* more answers of a kind."""
        wanted = self.answers[kind] + count
        await until(lambda: self.answers[kind] >= wanted)

    @asynccontextmanager
    async def clicking(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.click(n)) for n in range(4)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task


def settings_on(address: str) -> Any:
    """Return settings of a gateway at the address of an earlier one."""
    return settings_with(server={"port": int(address.rpartition(":")[2]), "grace_period_s": 0})


async def test_clicks_fail_with_a_reason_while_the_gateway_is_down_and_then_go_on() -> None:
    async with AsyncExitStack() as stack:
        settings = settings_with(server={"grace_period_s": 0})
        async with running(settings, engine=ColourEngine()) as gateway:
            address = gateway.address
            bridge = await stack.enter_async_context(bridging(address, gateways=QUICK))
            annotators = Annotators(bridge)
            await stack.enter_async_context(annotators.clicking())
            await annotators.wait_for("mask", 8)
        await annotators.wait_for("503 GATEWAY_UNAVAILABLE", 4)
        async with running(settings_on(address), engine=ColourEngine()):
            await annotators.wait_for("mask", 8)

    assert set(annotators.answers) == {"mask", "503 GATEWAY_UNAVAILABLE"}


async def test_clicks_do_not_fail_while_another_gateway_is_up() -> None:
    async with AsyncExitStack() as stack:
        staying = await stack.enter_async_context(running(settings_with(), engine=ColourEngine()))
        async with running(settings_with(), engine=ColourEngine()) as leaving:
            address = leaving.address
            bridge = await stack.enter_async_context(
                bridging(staying.address, address, gateways=QUICK)
            )
            annotators = Annotators(bridge)
            await stack.enter_async_context(annotators.clicking())
            await annotators.wait_for("mask", 8)
        await annotators.wait_for("mask", 8)
        async with running(settings_on(address), engine=ColourEngine()):
            await annotators.wait_for("mask", 8)

    assert set(annotators.answers) == {"mask"}


async def test_clicks_go_on_when_the_bridge_has_restarted() -> None:
    async with running(settings_with(), engine=ColourEngine()) as gateway:
        annotators = Annotators(None)
        async with annotators.clicking():
            for _ in range(3):
                async with bridging(gateway.address) as annotators.bridge:
                    await annotators.wait_for("mask", 8)
                annotators.bridge = None

    # The requests in flight were completed.
    assert annotators.answers["mask"] >= 24
    assert set(annotators.answers) <= {"mask", "no answer"}

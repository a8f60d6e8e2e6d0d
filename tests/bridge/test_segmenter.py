"""One encode for each image, however many clicks, tools and users; masks of the right image."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.app import running
from samserve.bridge.app import RunningBridge
from samserve.bridge.caller import Caller
from samserve.bridge.segmenter import ImageSource
from samserve.client import Overloaded, Prompt
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.types import Embedding

from tests import sample_images
from tests.bridge.serving import (
    X,
    bridged,
    bridging,
    call,
    click,
    embeds,
    point,
    received_bytes,
    rectangle,
    shapes,
)
from tests.conftest import settings_with
from tests.metric_values import total
from tests.security.credentials import KeyFile
from tests.support.engines import PausedEngine, wait_for_encodes
from tests.support.waiting import until

FILE = sample_images.png(300, 400)
ME = Caller(request_id="test")


def source_of(file: bytes, key: str = "") -> ImageSource:
    async def load() -> bytes:
        return file

    return ImageSource(key or f"test:{hash(file)}", load)


class ColourEngine(FakeEngine):
    """Draws every mask at a place that the colour of the image determines."""

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: Any
    ) -> DecoderOutput:
        output = await super().decode(model, embedding, prompts, context)
        colour = embedding.tensors["image_embedding"][:3, 0, 0].astype(np.float32)
        centre = colour[:2] / 256 * self._model.mask_size
        logits = np.stack(
            [self._ellipses(centre, np.array([0.4, 0.4]))] * len(output.low_res_logits)
        )
        return dataclasses.replace(output, low_res_logits=logits)


def coloured(red: int, green: int) -> bytes:
    """Return a file of one colour, 256 pixels wide and high, so that colours are coordinates."""
    return sample_images.encode(np.full((256, 256, 3), (red, green, 0), np.uint8))


def centre_of(found: list[dict[str, Any]]) -> tuple[float, float]:
    corners = np.array(found[0]["points"])
    return tuple((corners.min(axis=0) + corners.max(axis=0)) / 2)


async def test_image_is_encoded_once_for_all_clicks_and_only_the_first_sends_it() -> None:
    engine = FakeEngine()
    async with bridged(engine) as (bridge, gateway):
        await shapes(bridge, click(FILE, point(100, 100)))
        uploaded = received_bytes(gateway, "Embed")
        for x in range(50, 350, 50):
            await shapes(bridge, click(FILE, point(x, 100), point(20, 20, 0)))
        await shapes(bridge, click(FILE, rectangle(10, 10, 90, 90)))
        again = received_bytes(gateway, "Embed")
        clicks = received_bytes(gateway, "Predict")

    # The warm-up encodes too.
    assert engine.counts["encode_begun"] == 2
    assert uploaded > len(FILE)
    assert again == uploaded
    assert clicks < 2000
    assert (embeds(bridge, "encoded"), embeds(bridge, "held")) == (1, 7)
    assert total(bridge.metrics.registry, "samserve_bridge_encoded_bytes_total") == len(FILE)
    assert total(bridge.metrics.registry, "samserve_bridge_predicts_total") == 8


async def test_tools_that_call_an_image_by_other_names_share_its_embedding() -> None:
    engine = FakeEngine()
    async with bridged(engine) as (bridge, gateway):
        segmenter = bridge.segmenter
        first = await segmenter.embed(source_of(FILE, "url:one"), ME)
        uploaded = received_bytes(gateway, "Embed")
        second = await segmenter.embed(source_of(FILE, "url:two"), ME)

        assert second.known is first.known
        assert received_bytes(gateway, "Embed") == uploaded
    assert engine.counts["encode_begun"] == 2


async def test_orientation_distinguishes_images() -> None:
    async with bridged() as (bridge, _):
        as_shown = await bridge.segmenter.embed(source_of(FILE, "a"), ME)
        stored = dataclasses.replace(source_of(FILE, "a"), orientation="ignore")
        as_stored = await bridge.segmenter.embed(stored, ME)

    assert as_shown.known.embedding.id != as_stored.known.embedding.id


async def test_several_bridges_share_the_encode_of_an_image() -> None:
    engine = FakeEngine()
    async with bridged(engine) as (one, gateway), bridging(gateway.address) as other:
        for bridge in (one, other):
            await shapes(bridge, click(FILE, point(100, 100)))

    assert engine.counts["encode_begun"] == 2
    assert (embeds(one, "encoded"), embeds(other, "cached")) == (1, 1)


async def test_users_who_open_an_image_at_once_wait_for_one_encode() -> None:
    engine = PausedEngine()
    async with bridged(engine) as (bridge, gateway):
        users = [
            asyncio.create_task(shapes(bridge, click(FILE, point(10 * n, 100))))
            for n in range(1, 9)
        ]
        await wait_for_encodes(engine, 0)
        await engine.waiting.wait()
        inflight = bridge.metrics.in_flight("x_anylabeling")
        await until(lambda: inflight.value == 8)
        engine.go.set()
        await asyncio.gather(*users)

        assert engine.counts["encode_begun"] == 2
        assert received_bytes(gateway, "Embed") < 1.1 * len(FILE) + 500


async def test_user_who_leaves_does_not_end_the_encode_of_others() -> None:
    engine = PausedEngine()
    async with bridged(engine) as (bridge, _):
        segmenter = bridge.segmenter
        leaving = asyncio.create_task(segmenter.embed(source_of(FILE), ME))
        await engine.waiting.wait()
        staying = asyncio.create_task(segmenter.embed(source_of(FILE), ME))
        await asyncio.sleep(0)
        leaving.cancel()
        engine.go.set()
        held = await staying

    assert held.image_size == (300, 400)
    assert engine.counts["encode_cancelled"] == 0


async def test_ten_annotators_on_twenty_images_get_masks_of_their_own_images() -> None:
    engine = ColourEngine()
    # Apart enough that no mask reaches another's centre.
    places = [(30 + 50 * (n % 5), 30 + 60 * (n // 5)) for n in range(20)]
    files = {place: coloured(*place) for place in places}
    dice = random.Random(1)

    async def annotate(bridge: RunningBridge, order: list[tuple[int, int]]) -> None:
        for place in order:
            request = click(files[place], point(dice.randrange(256), dice.randrange(256)))
            found = centre_of(await shapes(bridge, request))
            assert np.allclose(found, place, atol=3), (found, place)

    # Fewer entries than images: they are forgotten and found again meanwhile.
    async with bridged(engine, limits={"max_held_images": 12}) as (bridge, _):
        await asyncio.gather(
            *(annotate(bridge, dice.sample(places, len(places))) for _ in range(10))
        )
        held = bridge.segmenter.held_images()

    assert engine.counts["encode_begun"] == 1 + len(files)
    assert held == 12


async def test_embeddings_are_not_found_with_the_credential_of_another(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    ours, theirs, weak = (
        keys.add("ours", "embed", "predict"),
        keys.add("theirs", "embed", "predict"),
        keys.add("ours", "embed"),
    )
    engine = FakeEngine()
    async with bridged(engine, server={"auth": {"api_keys_file": keys.path}}) as (bridge, _):
        request = click(FILE, point(100, 100))
        for key in (ours, theirs):
            await shapes(bridge, request, [("token", key)])
        # Each tenant has its own; each credential is checked by the gateway at every call.
        assert engine.counts["encode_begun"] == 3
        assert embeds(bridge, "held") == 0

        answer = await call(bridge, f"{X}/v1/predict", request, [("token", weak)])
        assert answer.status == 403
        assert b"permission predict" in answer.body


async def test_gateway_that_has_lost_an_embedding_gets_the_image_again() -> None:
    engine = FakeEngine()
    async with bridged(engine, server={"cache": {"local": {"capacity_bytes": 6 << 20}}}) as (
        bridge,
        _,
    ):
        request = click(FILE, point(100, 100))
        first = await shapes(bridge, request)
        for seed in range(1, 4):
            await shapes(bridge, click(sample_images.png(300, 400, seed), point(100, 100)))
        assert await shapes(bridge, request) == first

    assert engine.counts["encode_begun"] == 6
    assert embeds(bridge, "encoded") == 5


async def test_clicks_go_on_when_the_gateway_has_restarted() -> None:
    async with AsyncExitStack() as outer:
        request = click(FILE, point(100, 100))
        async with running(settings_with(), engine=FakeEngine()) as gateway:
            port = int(gateway.address.rpartition(":")[2])
            bridge = await outer.enter_async_context(
                bridging(gateway.address, gateways={"retry_interval_s": 0.01})
            )
            first = await shapes(bridge, request)
        lost = await call(bridge, f"{X}/v1/predict", request)
        async with running(settings_with(server={"port": port}), engine=FakeEngine()):
            # gRPC waits before it connects again, up to a second here.
            answer = await call(bridge, f"{X}/v1/predict", request)
            while answer.status == 503:
                await asyncio.sleep(0.1)
                answer = await call(bridge, f"{X}/v1/predict", request)
            assert await shapes(bridge, request) == first

    assert lost.status == 503
    assert b"no samserve server is reachable" in lost.body
    assert str(port).encode() not in lost.body


async def test_prefetch_returns_before_the_encode_and_the_click_waits_for_it() -> None:
    engine = PausedEngine()
    async with bridged(engine) as (bridge, _):
        held = await bridge.segmenter.embed(source_of(FILE), ME, wait=False)
        assert engine.counts["encode_finished"] == 1
        clicking = asyncio.create_task(
            bridge.segmenter.predict(held, [Prompt(points=[(100, 100)])], ME)
        )
        engine.go.set()
        prediction = await clicking

    assert prediction.results[0][0].area > 0
    assert engine.counts["encode_begun"] == 2


async def test_failed_embed_is_not_kept_and_the_error_reaches_all() -> None:
    loads = 0

    async def load() -> bytes:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0)
        return b"not an image"

    async with bridged() as (bridge, _):
        source = ImageSource("bad", load)
        results = await asyncio.gather(
            *(bridge.segmenter.embed(source, ME) for _ in range(3)), return_exceptions=True
        )
        assert bridge.segmenter.held_images() == 0

    assert {str(each).partition(":")[0] for each in results} == {"the file"}
    assert loads == 1
    assert embeds(bridge, "failed") == 1


async def test_crop_layers_of_automask_get_the_image() -> None:
    engine = FakeEngine()
    async with bridged(engine) as (bridge, gateway):
        held = await bridge.segmenter.embed(source_of(FILE), ME)
        result = await bridge.segmenter.automask(held, ME, crop_n_layers=1, points_per_side=2)

        assert received_bytes(gateway, "AutoMask") > len(FILE)
    assert result.summary.mask_count == len(result.records)


async def test_limits_of_the_gateway_reach_the_tool() -> None:
    engine = PausedEngine()
    server = {"admission": {"max_concurrent_embed": 1}}
    async with bridged(engine, server=server) as (bridge, _):
        first = asyncio.create_task(bridge.segmenter.embed(source_of(FILE), ME))
        await engine.waiting.wait()
        with pytest.raises(Overloaded):
            await bridge.segmenter.embed(source_of(sample_images.png(seed=2)), ME)
        engine.go.set()
        await first


async def test_two_gateways_share_the_images() -> None:
    engines = [FakeEngine(), FakeEngine()]
    files = [sample_images.png(60, 80, seed) for seed in range(16)]
    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(running(settings_with(), engine=engine))
            for engine in engines
        ]
        addresses = [each.address for each in gateways]
        one = await stack.enter_async_context(bridging(*addresses))
        other = await stack.enter_async_context(bridging(*reversed(addresses)))
        for bridge in (one, other):
            for file in files:
                await shapes(bridge, click(file, point(40, 30)))

    counts = [engine.counts["encode_begun"] - 1 for engine in engines]
    # Every bridge sends an image to the same gateway, whatever the order of its settings.
    assert sum(counts) == len(files)
    assert min(counts) > 0


async def test_other_gateway_takes_over_while_one_is_down() -> None:
    engines = [FakeEngine(), FakeEngine()]
    files = [sample_images.png(60, 80, seed) for seed in range(16)]
    async with AsyncExitStack() as outer:
        staying = await outer.enter_async_context(running(settings_with(), engine=engines[0]))
        async with running(settings_with(), engine=engines[1]) as leaving:
            bridge = await outer.enter_async_context(
                bridging(staying.address, leaving.address, gateways={"retry_interval_s": 60.0})
            )
            first = [await shapes(bridge, click(file, point(40, 30))) for file in files]
        own = engines[0].counts["encode_begun"] - 1
        then = [await shapes(bridge, click(file, point(40, 30))) for file in files]

    assert 0 < own < len(files)
    assert then == first
    assert engines[0].counts["encode_begun"] - 1 == len(files)
    # It is not tried again for each click.
    unavailable = total(
        bridge.metrics.registry,
        "samserve_bridge_gateway_unavailable_total",
        gateway=leaving.address,
    )
    assert unavailable == 1

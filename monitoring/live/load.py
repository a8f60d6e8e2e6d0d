"""Load of several kinds of clients, faulty ones included, and the status codes of their calls."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from monitoring.live.scenes import HEIGHT, WIDTH, scene

Tally = Counter[tuple[str, str]]
"""Calls by RPC and name of the status code, as seen by the clients."""

_IMAGES = 24
_ANNOTATORS = 2
_BURST = 40
_PAUSE_S = 0.15
# Without faults: a pace at which two CPU cores for the whole system are enough.
_CALM_PAUSE_S = 0.8
_AUTOMASK_PAUSE_S = 4
_POINTS_PER_BATCH = 4
_PREFETCH_S = 2


@dataclass(eq=False)
class Load:
    """Clients that call a gateway for some time; the same *seed* makes the same choices.

    With *faults* some clients send invalid requests, cancel calls, set deadlines that are too
    short, and exceed the concurrency limit.  Without, no call is expected to fail.
    """

    stub: samserve_pb2_grpc.SegmentationServiceAsyncStub
    faults: bool = True
    seed: int = 1
    tally: Tally = field(default_factory=Counter)
    _ended: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._images = [pb.Image(encoded=scene(number)) for number in range(_IMAGES)]
        self._pause_s = _PAUSE_S if self.faults else _CALM_PAUSE_S

    async def run(self, seconds: float) -> None:
        """Return when all calls that were started in that time have ended."""
        kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            *[self._annotate] * _ANNOTATORS,
            self._automask,
            self._prefetch,
        ]
        if self.faults:
            kinds += [self._fail, self._burst]
        clients = [
            self._repeat(kind, random.Random(f"{self.seed} {number}"))  # noqa: S311
            for number, kind in enumerate(kinds)
        ]
        asyncio.get_running_loop().call_later(seconds, self._ended.set)
        await asyncio.gather(*clients)

    async def _repeat(
        self, kind: Callable[[random.Random], Awaitable[None]], rng: random.Random
    ) -> None:
        while not self._ended.is_set():
            await kind(rng)
            await asyncio.sleep(rng.uniform(0.5, 1.5) * self._pause_s)

    async def _annotate(self, rng: random.Random) -> None:
        """Embed an image, refine a point prompt with a second one, then prompt with boxes."""
        image = self._choose(rng)
        durability = pb.DURABILITY_DURABLE if rng.random() < 0.1 else pb.DURABILITY_UNSPECIFIED
        embedded = await self._call("Embed", pb.EmbedRequest(image=image, durability=durability))
        if embedded is None:
            return
        name = embedded.embedding.id
        response = await self._call(
            "Predict",
            pb.PredictRequest(
                embedding_id=name, prompts=[_point(rng)], include_low_res_logits=True
            ),
        )
        if response is not None:
            refinement = _point(rng)
            refinement.mask.low_res_logits = response.results[0].masks[0].low_res_logits
            await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=[refinement]))
        boxes = [_box(rng) for _ in range(rng.randint(1, 4))]
        await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=boxes))

    async def _automask(self, rng: random.Random) -> None:
        """Segment everything in an image, with faults sometimes in crops as well."""
        request = pb.AutoMaskRequest(image=self._choose(rng))
        request.options.points_per_side = 8
        request.options.pred_iou_thresh = 0.4
        request.options.min_mask_region_area = 50
        if self.faults:
            request.options.crop_n_layers = int(rng.random() < 0.2)
        else:
            request.options.points_per_batch = _POINTS_PER_BATCH
        await self._call("AutoMask", request)
        if not self.faults:
            await asyncio.sleep(_AUTOMASK_PAUSE_S)

    async def _prefetch(self, rng: random.Random) -> None:
        """Prefetch an embedding, and use it."""
        request = pb.EmbedRequest(image=self._choose(rng), prefetch=True)
        embedded = await self._call("Embed", request)
        if not self.faults:
            await asyncio.sleep(_PREFETCH_S)
        if embedded is not None:
            name = embedded.embedding.id
            await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=[_box(rng)]))
        await asyncio.sleep(0.5)

    async def _fail(self, rng: random.Random) -> None:
        """Send invalid requests, set a deadline that is too short, cancel, use deleted ids."""
        unknown = pb.PredictRequest(embedding_id=f"sam_tiny:{'0' * 32}", prompts=[_point(rng)])
        outside = pb.PredictRequest(image=self._images[0])
        outside.prompts.add().points.add(x=-5000, y=1, label=pb.Point.LABEL_FOREGROUND)
        await self._call("Predict", unknown)
        await self._call("Predict", outside)
        await self._call("Embed", pb.EmbedRequest(image=pb.Image(encoded=b"no image")))
        automask = pb.AutoMaskRequest(image=self._choose(rng))
        await self._call("AutoMask", automask, timeout_s=0.05)
        await self._call("AutoMask", automask, cancel_after_s=0.2)
        await self._call("ListModels", pb.ListModelsRequest())
        embedded = await self._call("Embed", pb.EmbedRequest(image=self._images[-1]))
        if embedded is not None:
            delete = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
            await self._call("DeleteEmbedding", delete)
            again = pb.PredictRequest(image=self._images[-1], prompts=[_point(rng)])
            await self._call("Predict", again)
        await asyncio.sleep(1)

    async def _burst(self, rng: random.Random) -> None:
        """Send more concurrent calls than the gateway admits."""
        await asyncio.sleep(12)
        image = self._images[0]
        requests = [pb.PredictRequest(image=image, prompts=[_point(rng)]) for _ in range(_BURST)]
        await asyncio.gather(*(self._call("Predict", request) for request in requests))

    def _choose(self, rng: random.Random) -> pb.Image:
        # Roughly Zipf's law: the first images are requested most often.
        return self._images[min(int(rng.paretovariate(0.6)), _IMAGES) - 1]

    async def _call(
        self, method: str, request: Any, *, timeout_s: float = 60, cancel_after_s: float = 0
    ) -> Any:
        """Make one call and count it; return the last message of the response, None on failure."""
        call = getattr(self.stub, method)(request, timeout=timeout_s)
        if cancel_after_s:
            asyncio.get_running_loop().call_later(cancel_after_s, call.cancel)
        response = None
        try:
            if method == "AutoMask":
                async for message in call:
                    response = message
            else:
                response = await call
        except grpc.aio.AioRpcError:
            response = None
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
        self.tally[method, (await call.code()).name] += 1
        return response


@asynccontextmanager
async def load(target: str, *, faults: bool = True, seed: int = 1) -> AsyncIterator[Load]:
    """Yield a load on the gateway at *target*."""
    async with grpc.aio.insecure_channel(target) as channel:
        # The stubs' types have two classes, the generated code has one.
        stub: Any = samserve_pb2_grpc.SegmentationServiceStub(channel)
        yield Load(stub, faults, seed)


def _point(rng: random.Random) -> pb.Prompt:
    prompt = pb.Prompt()
    x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    prompt.points.add(x=x, y=y, label=pb.Point.LABEL_FOREGROUND)
    return prompt


def _box(rng: random.Random) -> pb.Prompt:
    x, y = rng.uniform(0, WIDTH / 2), rng.uniform(0, HEIGHT / 2)
    box = pb.Box(x_min=x, y_min=y, x_max=x + WIDTH / 3, y_max=y + HEIGHT / 3)
    return pb.Prompt(box=box)

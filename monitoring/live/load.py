"""Users of every kind, the mistaken and the impatient among them, and how their calls ended."""

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
"""Calls by RPC and the name of the code that they ended with, as their clients saw it."""

_IMAGES = 24
_ANNOTATORS = 2
_BURST = 40
_THINK_S = 0.15


@dataclass(eq=False)
class Load:
    """Calls a gateway until it is told to end; the same *seed* makes the same choices."""

    stub: samserve_pb2_grpc.SegmentationServiceAsyncStub
    seed: int = 1
    tally: Tally = field(default_factory=Counter)
    _ended: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self._images = [pb.Image(encoded=scene(number)) for number in range(_IMAGES)]

    async def run(self, seconds: float) -> None:
        """Return once all calls have ended that were begun in that time."""
        kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            *[self._annotate] * _ANNOTATORS,
            self._search,
            self._prepare,
            self._err,
            self._rush,
        ]
        users = [
            self._again(kind, random.Random(f"{self.seed} {number}"))  # noqa: S311
            for number, kind in enumerate(kinds)
        ]
        asyncio.get_running_loop().call_later(seconds, self._ended.set)
        await asyncio.gather(*users)

    async def _again(
        self, kind: Callable[[random.Random], Awaitable[None]], dice: random.Random
    ) -> None:
        while not self._ended.is_set():
            await kind(dice)
            await asyncio.sleep(dice.uniform(0.5, 1.5) * _THINK_S)

    async def _annotate(self, dice: random.Random) -> None:
        """Open an image, some more often than others; click, and click again; draw a box."""
        image = self._choose(dice)
        durability = pb.DURABILITY_DURABLE if dice.random() < 0.1 else pb.DURABILITY_UNSPECIFIED
        embedded = await self._call("Embed", pb.EmbedRequest(image=image, durability=durability))
        if embedded is None:
            return
        name = embedded.embedding.id
        answer = await self._call(
            "Predict",
            pb.PredictRequest(
                embedding_id=name, prompts=[_click(dice)], include_low_res_logits=True
            ),
        )
        if answer is not None:
            again = _click(dice)
            again.mask.low_res_logits = answer.results[0].masks[0].low_res_logits
            await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=[again]))
        boxes = [_box(dice) for _ in range(dice.randint(1, 4))]
        await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=boxes))

    async def _search(self, dice: random.Random) -> None:
        """Have everything found, sometimes in crops as well."""
        request = pb.AutoMaskRequest(image=self._choose(dice))
        request.options.points_per_side = 8
        request.options.pred_iou_thresh = 0.4
        request.options.min_mask_region_area = 50
        request.options.crop_n_layers = int(dice.random() < 0.2)
        await self._call("AutoMask", request)

    async def _prepare(self, dice: random.Random) -> None:
        """Have an image encoded ahead, and click in it once it is."""
        request = pb.EmbedRequest(image=self._choose(dice), prefetch=True)
        embedded = await self._call("Embed", request)
        if embedded is not None:
            name = embedded.embedding.id
            await self._call("Predict", pb.PredictRequest(embedding_id=name, prompts=[_box(dice)]))
        await asyncio.sleep(0.5)

    async def _err(self, dice: random.Random) -> None:
        """Make the mistakes that clients make, leave early, and wait too short."""
        unknown = pb.PredictRequest(embedding_id=f"sam_tiny:{'0' * 32}", prompts=[_click(dice)])
        outside = pb.PredictRequest(image=self._images[0])
        outside.prompts.add().points.add(x=-5000, y=1, label=pb.Point.LABEL_FOREGROUND)
        await self._call("Predict", unknown)
        await self._call("Predict", outside)
        await self._call("Embed", pb.EmbedRequest(image=pb.Image(encoded=b"no image")))
        search = pb.AutoMaskRequest(image=self._choose(dice))
        await self._call("AutoMask", search, timeout_s=0.05)
        await self._call("AutoMask", search, leaves_s=0.2)
        await self._call("ListModels", pb.ListModelsRequest())
        kept = await self._call("Embed", pb.EmbedRequest(image=self._images[-1]))
        if kept is not None:
            gone = pb.DeleteEmbeddingRequest(embedding_id=kept.embedding.id)
            await self._call("DeleteEmbedding", gone)
            anew = pb.PredictRequest(image=self._images[-1], prompts=[_click(dice)])
            await self._call("Predict", anew)
        await asyncio.sleep(1)

    async def _rush(self, dice: random.Random) -> None:
        """Send more clicks at once than the gateway lets in."""
        await asyncio.sleep(12)
        image = self._images[0]
        requests = [pb.PredictRequest(image=image, prompts=[_click(dice)]) for _ in range(_BURST)]
        await asyncio.gather(*(self._call("Predict", request) for request in requests))

    def _choose(self, dice: random.Random) -> pb.Image:
        # About as Zipf has it: the first images are the most wanted.
        return self._images[min(int(dice.paretovariate(0.6)), _IMAGES) - 1]

    async def _call(
        self, method: str, request: Any, *, timeout_s: float = 60, leaves_s: float = 0
    ) -> Any:
        """Make one call and count it; return the last message of the answer, None if it failed."""
        call = getattr(self.stub, method)(request, timeout=timeout_s)
        if leaves_s:
            asyncio.get_running_loop().call_later(leaves_s, call.cancel)
        answer = None
        try:
            if method == "AutoMask":
                async for message in call:
                    answer = message
            else:
                answer = await call
        except grpc.aio.AioRpcError:
            answer = None
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
        self.tally[method, (await call.code()).name] += 1
        return answer


@asynccontextmanager
async def load(target: str, *, seed: int = 1) -> AsyncIterator[Load]:
    """Open a load on the gateway at *target*."""
    async with grpc.aio.insecure_channel(target) as channel:
        # The stubs' types know two classes, the generated code one.
        stub: Any = samserve_pb2_grpc.SegmentationServiceStub(channel)
        yield Load(stub, seed)


def _click(dice: random.Random) -> pb.Prompt:
    prompt = pb.Prompt()
    x, y = dice.uniform(0, WIDTH), dice.uniform(0, HEIGHT)
    prompt.points.add(x=x, y=y, label=pb.Point.LABEL_FOREGROUND)
    return prompt


def _box(dice: random.Random) -> pb.Prompt:
    x, y = dice.uniform(0, WIDTH / 2), dice.uniform(0, HEIGHT / 2)
    box = pb.Box(x_min=x, y_min=y, x_max=x + WIDTH / 3, y_max=y + HEIGHT / 3)
    return pb.Prompt(box=box)

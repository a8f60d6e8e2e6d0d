"""Load of annotation clients: Embed, Predict by id, and Predict with the image after a miss."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.cluster.gateways import Gateway, LocalGateway
from tests.rpc.errors import read


@dataclass
class Tally:
    """Counts of calls and results, and unexpected errors."""

    counts: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)


@dataclass
class Clients:
    """Clients whose calls go to a random gateway; ``ids`` are embedding ids by image number."""

    gateways: Sequence[Gateway | LocalGateway]
    tally: Tally = field(default_factory=Tally)
    timeout_s: float = 60.0
    ids: dict[int, str] = field(default_factory=dict)

    def any(self) -> Gateway | LocalGateway:
        return random.choice(self.gateways)

    async def embed(self, number: int, *, durable: bool = False) -> pb.Embedding | None:
        """Embed an image; None if it failed or is not durable."""
        durability = pb.DURABILITY_DURABLE if durable else pb.DURABILITY_UNSPECIFIED
        request = pb.EmbedRequest(image=numbered_image(number), durability=durability)
        try:
            response = await self._call("embed", self.any().stub.Embed, request)
        except grpc.aio.AioRpcError as error:
            if durable and read(error).reason == "CACHE_UNAVAILABLE":
                self.tally.counts["not durable"] += 1
                return None
            self._record_unexpected("embed", error)
            return None
        self.ids[number] = response.embedding.id
        self.tally.counts[pb.Stored.Name(response.embedding.stored)] += 1
        return response.embedding

    async def stored(self, number: int, *, durable: bool = False) -> str:
        """Embed an image; return the name of its `Stored` value, empty if the call failed."""
        embedding = await self.embed(number, durable=durable)
        return "" if embedding is None else pb.Stored.Name(embedding.stored)

    async def predict(self, number: int) -> str:
        """Predict by id, after a miss with the image; return "found" or the reason of the error."""
        request = pb.PredictRequest(
            embedding_id=self.ids[number], prompts=[sample_images.point_prompt()]
        )
        try:
            await self._call("predict", self.any().stub.Predict, request)
        except grpc.aio.AioRpcError as error:
            reason = read(error).reason
            if reason not in ("EMBEDDING_NOT_FOUND", "CACHE_UNAVAILABLE"):
                self._record_unexpected("predict", error)
                return reason
            self.tally.counts[reason] += 1
            await self.predict_with_image(number)
            return reason
        return "found"

    async def predict_with_image(self, number: int) -> None:
        request = pb.PredictRequest(
            image=numbered_image(number), prompts=[sample_images.point_prompt()]
        )
        try:
            await self._call("predict_with_image", self.any().stub.Predict, request)
        except grpc.aio.AioRpcError as error:
            self._record_unexpected("predict_with_image", error)

    async def work(self, numbers: Sequence[int], until: asyncio.Event) -> None:
        while not until.is_set():
            number = random.choice(numbers)
            if number in self.ids and random.random() < 0.8:
                await self.predict(number)
            else:
                await self.embed(number)

    @asynccontextmanager
    async def working(self, numbers: Sequence[int], count: int = 6) -> AsyncIterator[Tally]:
        """Send calls while the block runs."""
        until = asyncio.Event()
        tasks = [asyncio.create_task(self.work(numbers, until)) for _ in range(count)]
        try:
            yield self.tally
        finally:
            until.set()
            await asyncio.gather(*tasks)

    async def _call(self, kind: str, method, request):  # type: ignore[no-untyped-def]
        try:
            return await method(request, timeout=self.timeout_s)
        finally:
            self.tally.counts[kind] += 1

    def _record_unexpected(self, kind: str, error: grpc.aio.AioRpcError) -> None:
        self.tally.unexpected.append(f"{kind}: {error.code().name} {error.details()}")


def numbered_image(number: int) -> pb.Image:
    """Return image *number*, which is deterministic."""
    return sample_images.image(40, 60, seed=1000 + number)

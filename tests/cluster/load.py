"""Clients that annotate: embed, click, and send the picture again where they are told to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.cluster.gateways import Gateway, LocalGateway
from tests.rpc.errors import read


@dataclass
class Tally:
    """What the clients have seen."""

    counts: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)


@dataclass
class Clients:
    """Each call goes to any of the gateways; ids are those of pictures by number."""

    gateways: Sequence[Gateway | LocalGateway]
    tally: Tally = field(default_factory=Tally)
    timeout_s: float = 60.0
    ids: dict[int, str] = field(default_factory=dict)

    def any(self) -> Gateway | LocalGateway:
        return random.choice(self.gateways)

    async def embed(self, number: int, *, durable: bool = False) -> pb.Embedding | None:
        """Embed a picture; None if it could not be made durable."""
        durability = pb.DURABILITY_DURABLE if durable else pb.DURABILITY_UNSPECIFIED
        request = pb.EmbedRequest(image=picture(number), durability=durability)
        try:
            answer = await self._call("embed", self.any().stub.Embed, request)
        except grpc.aio.AioRpcError as error:
            if durable and read(error).reason == "STORE_UNAVAILABLE":
                self.tally.counts["not durable"] += 1
                return None
            self._surprise("embed", error)
            return None
        self.ids[number] = answer.embedding.id
        self.tally.counts[pb.Stored.Name(answer.embedding.stored)] += 1
        return answer.embedding

    async def stored(self, number: int, *, durable: bool = False) -> str:
        """Embed a picture; gives where it is stored, nothing if that has failed."""
        embedding = await self.embed(number, durable=durable)
        return "" if embedding is None else pb.Stored.Name(embedding.stored)

    async def click(self, number: int) -> str:
        """Click by id, and heal by sending the picture; gives how it was answered."""
        request = pb.PredictRequest(embedding_id=self.ids[number], prompts=[pictures.click()])
        try:
            await self._call("click", self.any().stub.Predict, request)
        except grpc.aio.AioRpcError as error:
            reason = read(error).reason
            if reason not in ("EMBEDDING_NOT_FOUND", "STORE_UNAVAILABLE"):
                self._surprise("click", error)
                return reason
            self.tally.counts[reason] += 1
            await self.heal(number)
            return reason
        return "found"

    async def heal(self, number: int) -> None:
        request = pb.PredictRequest(image=picture(number), prompts=[pictures.click()])
        try:
            await self._call("heal", self.any().stub.Predict, request)
        except grpc.aio.AioRpcError as error:
            self._surprise("heal", error)

    async def work(self, numbers: Sequence[int], until: asyncio.Event) -> None:
        while not until.is_set():
            number = random.choice(numbers)
            if number in self.ids and random.random() < 0.8:
                await self.click(number)
            else:
                await self.embed(number)

    @asynccontextmanager
    async def working(self, numbers: Sequence[int], count: int = 6) -> AsyncIterator[Tally]:
        """Work while the block runs."""
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

    def _surprise(self, what: str, error: grpc.aio.AioRpcError) -> None:
        self.tally.unexpected.append(f"{what}: {error.code().name} {error.details()}")


def picture(number: int) -> pb.Image:
    """Make picture *number*, always the same."""
    return pictures.image(40, 60, seed=1000 + number)

"""Load of three families on several gateways: clicks, and embeddings that cross the cluster.

Every answer is kept and compared, afterwards, with that of a gateway which does nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.cluster.gateways import Gateway, LocalGateway

HEIGHT, WIDTH = 90, 120
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Question:
    """One click on one image."""

    family: str
    number: int
    x: float
    y: float

    @property
    def image(self) -> pb.Image:
        """The image, of one colour that no other number has."""
        colour = np.random.default_rng(self.number).integers(0, 256, 3, np.uint8)
        pixels = np.broadcast_to(colour, (HEIGHT, WIDTH, 3))
        return pb.Image(encoded=sample_images.encode(pixels))

    def request(self, embedding_id: str = "") -> pb.PredictRequest:
        """Return a Predict request by id, or without an id with the image."""
        prompts = [sample_images.point_prompt(self.x, self.y)]
        if embedding_id:
            return pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)
        return pb.PredictRequest(model=self.family, image=self.image, prompts=prompts)


@dataclass(frozen=True)
class Click:
    """The milliseconds of a click from when it was due, and those of its stages in the gateway."""

    total_ms: float
    stages_ms: Mapping[str, float]


@dataclass
class Load:
    """Clients of several gateways, and their ``clicks`` so far.

    ``answers`` are the results of all questions so far, ``crossed`` counts the embeddings that one
    gateway wrote and another read.
    """

    gateways: Sequence[Gateway | LocalGateway]
    families: Sequence[str]
    seed: int = 0
    clicks: list[Click] = field(default_factory=list)
    answers: list[tuple[Question, pb.PredictResponse]] = field(default_factory=list)
    crossed: int = 0
    _ids: dict[tuple[str, int], str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    async def prepare(self, images: int) -> None:
        """Embed *images* per family, and load them into the local tier of every gateway."""
        for family, number in itertools.product(self.families, range(images)):
            self._ids[family, number] = await self._embed(self.gateways[0], family, number)
            for gateway in self.gateways:
                await self._predict(gateway, family, number)

    async def click(self, seconds: float, rate: float) -> None:
        """Send clicks on prepared images, at random moments, *rate* of them in a second."""
        started, due, tasks = time.perf_counter(), 0.0, []
        prepared = list(self._ids)
        while (due := due + self._random.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            family, number = prepared[self._random.integers(len(prepared))]
            gateway = self.gateways[self._random.integers(len(self.gateways))]
            tasks.append(asyncio.create_task(self._click(gateway, family, number, started + due)))
        await asyncio.gather(*tasks)

    async def cross(self, seconds: float, rate: float) -> None:
        """Embed a new image on one gateway and click it on another, *rate* times in a second."""
        started, tasks = time.perf_counter(), []
        for count in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, started + count / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(self._cross(count)))
        await asyncio.gather(*tasks)

    async def differences(self, alone: SegmentationServiceStub) -> list[Question]:
        """Ask everything again, one question after the other; return those answered otherwise."""
        return [
            question
            for question, answer in self.answers
            if (await alone.Predict(question.request())).results != answer.results
        ]

    async def _cross(self, count: int) -> None:
        family = self.families[count % len(self.families)]
        writer, reader = (self.gateways[(count + each) % len(self.gateways)] for each in range(2))
        number = next(self._numbers)
        embedding_id = await self._embed(writer, family, number)
        question = self._question(family, number)
        answer = await reader.stub.Predict(question.request(embedding_id), timeout=_TIMEOUT_S)
        self.answers.append((question, answer))
        self.crossed += 1

    async def _click(
        self, gateway: Gateway | LocalGateway, family: str, number: int, due: float
    ) -> None:
        answer = await self._predict(gateway, family, number)
        stages_ms = {each.stage: each.duration_ms for each in answer.timings}
        self.clicks.append(Click(1e3 * (time.perf_counter() - due), stages_ms))

    async def _predict(
        self, gateway: Gateway | LocalGateway, family: str, number: int
    ) -> pb.PredictResponse:
        question = self._question(family, number)
        request = question.request(self._ids[family, number])
        answer = await gateway.stub.Predict(request, timeout=_TIMEOUT_S)
        self.answers.append((question, answer))
        return answer

    async def _embed(self, gateway: Gateway | LocalGateway, family: str, number: int) -> str:
        image = Question(family, number, 0, 0).image
        request = pb.EmbedRequest(model=family, image=image)
        response = await gateway.stub.Embed(request, timeout=_TIMEOUT_S)
        assert response.embedding.stored == pb.STORED_SHARED
        embedding_id: str = response.embedding.id
        return embedding_id

    def _question(self, family: str, number: int) -> Question:
        x, y = self._random.uniform(0.2, 0.8, 2) * (WIDTH, HEIGHT)
        return Question(family, number, float(x), float(y))

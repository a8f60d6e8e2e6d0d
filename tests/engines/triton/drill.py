"""Calls of every kind while the weights of a model change under its name, and what came of them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from samserve.errors import EmbeddingNotFound
from samserve.segmentation import ids
from samserve.stores.base import EmbeddingStore
from samserve.types import EmbeddingKey, EncodedImage, ModelInfo
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.engines.triton.opening import Service
from tests.engines.weights import Versions, versions_of, write_version
from tests.rpc.errors import Failure, read
from tests.support.waiting import until

NAME = "fake"


@dataclass
class Weights:
    """The versions that a model was given so far, by the digest of each."""

    repository: Path
    infos: dict[int, ModelInfo] = field(default_factory=dict)

    def write(self, version: int) -> ModelInfo:
        """Replace what Triton will load next."""
        self.infos[version] = write_version(self.repository, NAME, version)
        return self.infos[version]

    def of(self, image: pb.Image, embedding_id: str) -> int:
        """Tell which version an id promises: it is made of the image and of the digest."""
        given = EncodedImage(image.encoded)
        versions = {ids.embedding_id(given, info): v for v, info in self.infos.items()}
        return versions[embedding_id]


@dataclass
class Drill:
    """Callers that never stop, the answers that were right and everything that was not."""

    service: Service
    weights: Weights
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stored: int = 0
    embedded: dict[str, int] = field(default_factory=dict)
    _images: Iterator[int] = field(default_factory=itertools.count)

    def __str__(self) -> str:
        counts = f"answers {dict(self.answers)}, failures {dict(self.failures)}"
        return f"{counts}, stored {self.stored}, wrong {len(self.wrong)}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep calling while the block runs, and finish the calls that are under way."""
        over = asyncio.Event()
        kinds = (self.embed, self.embed, self.click, self.click, self.click, self.click_on_image)
        # A caller that meets anything but an error of gRPC ends the block.
        async with asyncio.TaskGroup() as callers:
            for kind in kinds:
                callers.create_task(self._call_until(over, kind))
            try:
                yield
            finally:
                over.set()

    async def progress(self, kinds: tuple[str, ...] = ("embed", "click", "image")) -> None:
        """Wait until calls of every kind have been answered since now."""
        before = self.answers.copy()
        await until(lambda: all(self.answers[kind] > before[kind] + 2 for kind in kinds))

    async def embed(self) -> None:
        """Embed an image that nobody has seen; its id says which weights have made it."""
        image = self._image()
        answer = await self.service[1].Embed(pb.EmbedRequest(image=image))
        embedding_id = answer.embedding.id
        self.embedded[embedding_id] = self.weights.of(image, embedding_id)
        self.answers["embed"] += 1

    async def click(self) -> None:
        """Click on the embedding that was made last."""
        if not self.embedded:
            await asyncio.sleep(0.01)
            return
        embedding_id, version = next(reversed(self.embedded.items()))
        request = pb.PredictRequest(embedding_id=embedding_id)
        self._judge("click", await self._predict(request), Versions(version, version))

    async def click_on_image(self) -> None:
        """Click on an image that nobody has seen."""
        image = self._image()
        answer = await self._predict(pb.PredictRequest(image=image))
        version = self.weights.of(image, answer.embedding.id)
        self.embedded[answer.embedding.id] = version
        self._judge("image", answer, Versions(version, version))

    async def inspect(self, store: EmbeddingStore | None = None) -> None:
        """Look at what is stored, in another store if one is given, under each id answered."""
        looked_at = store or self.service[0].store
        for embedding_id, version in self.embedded.items():
            key = EmbeddingKey("default", embedding_id)
            try:
                async with looked_at.lease(key) as embedding:
                    made_by = int(embedding.tensors["image_embedding"][0, 0, 0])
            except EmbeddingNotFound:
                continue
            self.stored += 1
            if made_by != version:
                self.wrong.append(f"stored under an id of {version}: made by {made_by}")

    async def _predict(self, request: pb.PredictRequest) -> pb.PredictResponse:
        request.prompts.append(pictures.click(8, 8))
        request.multimask = pb.MULTIMASK_ALL
        return await self.service[1].Predict(request)

    def _judge(self, kind: str, answer: pb.PredictResponse, right: Versions) -> None:
        (result,) = answer.results
        found = versions_of({m.token_index: m.predicted_iou for m in result.masks})
        self.answers[kind] += 1
        if found != right:
            self.wrong.append(f"{kind}: {found}, not {right}")

    async def _call_until(self, over: asyncio.Event, call: Callable[[], object]) -> None:
        while not over.is_set():
            try:
                await call()  # type: ignore[misc]  # it is a coroutine function
            except grpc.aio.AioRpcError as error:
                self._note(call.__name__, read(error))
                await asyncio.sleep(0.02)

    def _note(self, kind: str, failure: Failure) -> None:
        self.failures[kind, failure.reason] += 1
        again = failure.reason == "ENGINE_UNAVAILABLE" and failure.retry_after_s is not None
        # Only who names an embedding is told that it is of weights that are not served any more.
        if not again and (kind, failure.reason) != ("click", "EMBEDDING_NOT_FOUND"):
            self.wrong.append(f"{kind} failed: {failure.reason}: {failure.text}")

    def _image(self) -> pb.Image:
        return pictures.image(16, 16, seed=next(self._images))

"""Continuous calls of every kind while the weights of a model are replaced, and their results."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from samserve.cache.base import EmbeddingCache
from samserve.errors import EmbeddingNotFound
from samserve.segmentation import ids
from samserve.types import EmbeddingKey, EncodedImage, ModelInfo
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.engines.triton.services import Service
from tests.engines.weights import Versions, versions_of, write_version
from tests.rpc.errors import Failure, read
from tests.support.waiting import until

NAME = "fake"


@dataclass
class Weights:
    """The versions of a model that have been written so far."""

    repository: Path
    infos: dict[int, ModelInfo] = field(default_factory=dict)

    def write(self, version: int) -> ModelInfo:
        """Write the version that Triton will load next."""
        self.infos[version] = write_version(self.repository, NAME, version)
        return self.infos[version]

    def version_of(self, image: pb.Image, embedding_id: str) -> int:
        """Return the version of an embedding id, which depends on the image and on the digest."""
        encoded = EncodedImage(image.encoded)
        versions = {ids.embedding_id(encoded, info): v for v, info in self.infos.items()}
        return versions[embedding_id]


@dataclass
class Traffic:
    """Clients that call continuously; counts correct responses and records all others."""

    service: Service
    weights: Weights
    responses: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    cached: int = 0
    embedded: dict[str, int] = field(default_factory=dict)
    _images: Iterator[int] = field(default_factory=itertools.count)

    def __str__(self) -> str:
        counts = f"responses {dict(self.responses)}, failures {dict(self.failures)}"
        return f"{counts}, cached {self.cached}, mismatches {len(self.mismatches)}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep calling while the block runs, and finish the calls that are in flight."""
        over = asyncio.Event()
        by_id, by_image = self.predict_by_id, self.predict_by_image
        # Any exception other than an error of gRPC ends the block.
        async with asyncio.TaskGroup() as callers:
            for call in (self.embed, self.embed, by_id, by_id, by_id, by_image):
                callers.create_task(self._call_until(over, call))
            try:
                yield
            finally:
                over.set()

    async def progress(self, kinds: tuple[str, ...] = ("embed", "by_id", "by_image")) -> None:
        """Wait for a few more responses to calls of every kind."""
        before = self.responses.copy()
        await until(lambda: all(self.responses[kind] > before[kind] + 2 for kind in kinds))

    async def embed(self) -> None:
        """Embed a new image; its id identifies the weights of the embedding."""
        image = self._image()
        response = await self.service[1].Embed(pb.EmbedRequest(image=image))
        embedding_id = response.embedding.id
        self.embedded[embedding_id] = self.weights.version_of(image, embedding_id)
        self.responses["embed"] += 1

    async def predict_by_id(self) -> None:
        """Call Predict with the id of the latest embedding."""
        if not self.embedded:
            await asyncio.sleep(0.01)
            return
        embedding_id, version = next(reversed(self.embedded.items()))
        request = pb.PredictRequest(embedding_id=embedding_id)
        self._check("by_id", await self._predict(request), Versions(version, version))

    async def predict_by_image(self) -> None:
        """Call Predict with a new image."""
        image = self._image()
        response = await self._predict(pb.PredictRequest(image=image))
        version = self.weights.version_of(image, response.embedding.id)
        self.embedded[response.embedding.id] = version
        self._check("by_image", response, Versions(version, version))

    async def check_cache(self, cache: EmbeddingCache | None = None) -> None:
        """Check the cached embedding of each id, in the gateway's cache unless one is given."""
        checked = cache or self.service[0].cache
        for embedding_id, version in self.embedded.items():
            key = EmbeddingKey("default", embedding_id)
            try:
                async with checked.lease(key) as embedding:
                    found = int(embedding.tensors["image_embedding"][0, 0, 0])
            except EmbeddingNotFound:
                continue
            self.cached += 1
            if found != version:
                self.mismatches.append(f"cached under an id of {version}: encoded by {found}")

    async def _predict(self, request: pb.PredictRequest) -> pb.PredictResponse:
        request.prompts.append(sample_images.point_prompt(8, 8))
        request.multimask = pb.MULTIMASK_ALL
        return await self.service[1].Predict(request)

    def _check(self, kind: str, response: pb.PredictResponse, expected: Versions) -> None:
        (result,) = response.results
        found = versions_of({m.token_index: m.predicted_iou for m in result.masks})
        self.responses[kind] += 1
        if found != expected:
            self.mismatches.append(f"{kind}: {found}, not {expected}")

    async def _call_until(self, over: asyncio.Event, call: Callable[[], object]) -> None:
        while not over.is_set():
            try:
                await call()  # type: ignore[misc]  # it is a coroutine function
            except grpc.aio.AioRpcError as error:
                self._record_failure(call.__name__, read(error))
                await asyncio.sleep(0.02)

    def _record_failure(self, call: str, failure: Failure) -> None:
        self.failures[call, failure.reason] += 1
        retryable = failure.reason == "ENGINE_UNAVAILABLE" and failure.retry_after_s is not None
        # Only a call by id may fail because the weights of its embedding are no longer served.
        if not retryable and (call, failure.reason) != ("predict_by_id", "EMBEDDING_NOT_FOUND"):
            self.mismatches.append(f"{call} failed: {failure.reason}: {failure.text}")

    def _image(self) -> pb.Image:
        return sample_images.image(16, 16, seed=next(self._images))

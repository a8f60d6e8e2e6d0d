"""The versions of models that an engine has loaded: in service, prepared, or used by calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from samserve.context import RequestContext
from samserve.errors import MemoryExhausted, PromotionRefused
from samserve.models.repository import Bundle
from samserve.system.limits import available_memory_bytes
from samserve.types import ModelInfo

G = TypeVar("G")

# Loading reads the file and copies the weights.
_LOADING = 2


class Versions(Generic[G]):
    """Versions beside those in service, and how many calls use each version."""

    def __init__(self) -> None:
        self.others: dict[tuple[str, str], Bundle[G]] = {}
        """By model and digest, the loaded versions that are not in service."""
        self._calls: Counter[tuple[str, str]] = Counter()
        self._idle = asyncio.Event()

    @contextmanager
    def using(self, bundle: Bundle[G], context: RequestContext) -> Iterator[None]:
        """Count a call that uses a version, and let `RequestContext.weights` name it."""
        key, before = _key(bundle.info), context.weights.get(bundle.info.name)
        self._calls[key] += 1
        context.weights[bundle.info.name] = bundle
        try:
            yield
        finally:
            if before is None:
                context.weights.pop(bundle.info.name, None)
            else:
                context.weights[bundle.info.name] = before
            self._calls[key] -= 1
            if not self._calls[key]:
                del self._calls[key]
                self._idle.set()

    async def drain(self, model: str, digest: str) -> None:
        """Wait until no call uses a version."""
        while (model, digest) in self._calls:
            self._idle.clear()
            await self._idle.wait()

    def find(self, model: ModelInfo, serving: Mapping[str, Bundle[G]]) -> Bundle[G] | None:
        """Return a loaded version, in service or not; None if it is not loaded."""
        current = serving.get(model.name)
        if current is not None and current.info.digest == model.digest:
            return current
        return self.others.get(_key(model))

    def of_encoder(self, model: str, encoder_digest: str) -> Bundle[G] | None:
        """Return a version with this encoder that is loaded and not in service."""
        for (name, _), bundle in self.others.items():
            if (name, bundle.info.encoder_digest) == (model, encoder_digest):
                return bundle
        return None

    def prepared(self, model: str, digest: str) -> Bundle[G]:
        """Return a version that is not in service.  Raises `PromotionRefused` if not loaded."""
        bundle = self.others.get((model, digest))
        if bundle is None:
            raise PromotionRefused(f"version {digest[:12]} of {model!r} is not loaded: prepare it")
        return bundle


def check_memory(new: int, loaded: int, limit: int, *, local: bool) -> None:
    """Raise `MemoryExhausted` unless *new* bytes of weights fit beside the *loaded* ones.

    *limit* is ``engine.max_model_bytes``.  With *local*, the machine's own memory counts too.
    """
    if limit and loaded + new > limit:
        raise MemoryExhausted(
            f"both versions together need {loaded + new} bytes of weights, over the limit "
            f"engine.max_model_bytes of {limit}",
            retry_after_s=None,
            metadata={"resource": "model_memory", "limit": str(limit), "value": str(loaded + new)},
        )
    available = available_memory_bytes() if local else None
    if available is not None and new * _LOADING > available:
        raise MemoryExhausted(
            f"loading {new} bytes of weights beside the version in service needs about "
            f"{new * _LOADING} bytes, and {available} are available",
            retry_after_s=None,
            metadata={
                "resource": "model_memory",
                "limit": str(available),
                "value": str(new * _LOADING),
            },
        )


def _key(info: ModelInfo) -> tuple[str, str]:
    return info.name, info.digest

"""The versions of models on Triton that this gateway uses, and their change."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import structlog

from samserve.context import RequestContext
from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.health_monitor import HealthMonitor
from samserve.engines.triton.promotion import load_beside, unload
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.engines.versions import Versions
from samserve.engines.weights import weights_changed
from samserve.errors import EngineUnavailable, PromotionRefused
from samserve.models.repository import Bundle, ModelConfig
from samserve.types import EmbeddingFacts, ModelInfo, ModelVersion


class TritonVersions:
    """Versions in service are those of the monitor, the others are loaded beside them."""

    def __init__(
        self,
        connection: TritonConnection,
        monitor: HealthMonitor,
        regions: ShmRegions,
        max_model_bytes: int,
    ) -> None:
        self._connection = connection
        self._monitor = monitor
        self._regions = regions
        self._max_model_bytes = max_model_bytes
        self._versions: Versions[str] = Versions()
        self._configs: dict[tuple[str, str], Mapping[str, ModelConfig]] = {}
        self._log = structlog.get_logger("samserve.models")

    def bundle(self, model: str, facts: EmbeddingFacts, context: RequestContext) -> Bundle[str]:
        """Return the model with the encoder of an embedding; never one with another encoder.

        It is the version that the call began with.
        """
        current = self._monitor.bundles.get(model)
        if current is None:
            raise EngineUnavailable(f"Triton no longer serves the model {model!r}")
        bundle: Bundle[str] = context.weights.get(model, current)
        if bundle.versions == current.versions:
            # Other weights may have been loaded under the same number since.
            bundle = current
        if bundle.info.encoder_digest == facts.encoder_digest:
            return bundle
        # Work that several calls share may be for the version of another one.
        other = self._versions.of_encoder(model, facts.encoder_digest)
        if other is None:
            raise weights_changed(model)
        return other

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        """See `Engine.using`."""
        bundle = self._versions.find(model, self._monitor.bundles)
        if bundle is None:
            raise weights_changed(model.name)
        return self._versions.using(bundle, context)

    async def prepare(self, version: ModelVersion) -> ModelInfo:
        """See `Engine.prepare`."""
        current = self._monitor.bundles.get(version.model)
        if current is None:
            raise PromotionRefused(f"Triton serves no model {version.model!r}")
        if current.info.digest == version.digest:
            return current.info
        loaded = self._versions.others.get((version.model, version.digest))
        if loaded is not None:
            if loaded.versions["decoder"] == version.number:
                return loaded.info
            # Of a command that did not end; its files may be gone.
            await self.release(version.model, version.digest)
        bundle, configs = await load_beside(
            self._connection, version, current, self._max_model_bytes, local=self._regions.accepted
        )
        self._versions.others[version.model, version.digest] = bundle
        self._configs[version.model, version.digest] = configs
        return bundle.info

    def activate(self, model: str, digest: str) -> None:
        """See `Engine.activate`."""
        old = self._monitor.bundles.get(model)
        if old is not None and old.info.digest == digest:
            return
        new = self._versions.prepared(model, digest)
        if old is not None:
            self._versions.others[model, old.info.digest] = old
        del self._versions.others[model, digest]
        self._monitor.activate(new)
        self._log.info("model version in service", model=model, digest=digest)

    async def drain(self, model: str, digest: str) -> None:
        """See `Engine.drain`."""
        await self._versions.drain(model, digest)

    async def release(self, model: str, digest: str) -> None:
        """See `Engine.release`."""
        current = self._monitor.bundles.get(model)
        if current is None or current.info.digest == digest:
            raise PromotionRefused(f"version {digest[:12]} of {model!r} is in service")
        old = self._versions.others.get((model, digest))
        if old is not None:
            configs = self._configs.get((model, current.info.digest), {})
            await unload(self._connection, old, current, configs)
            self._configs.pop((model, digest), None)
            del self._versions.others[model, digest]
            await self._monitor.refresh()

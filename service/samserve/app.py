"""The composition root: builds everything, runs it, and takes it down in reverse order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from samserve.automask.search import AutoMasker
from samserve.embedder import Embedder
from samserve.engines.base import Engine
from samserve.engines.fake import FakeEngine
from samserve.engines.onnx import OnnxEngine
from samserve.imaging import ImageLimits
from samserve.metrics import Metrics
from samserve.predictor import Predictor
from samserve.rpc.admin import Admin
from samserve.rpc.admission import Admission
from samserve.rpc.boundary import Boundary
from samserve.rpc.server import ApiServer
from samserve.rpc.servicer import SegmentationServicer, UseCases
from samserve.settings import EngineSettings, Settings, core_count
from samserve.stores.base import EmbeddingStore
from samserve.stores.memory import MemoryStore
from samserve.warmup import warm_up
from samserve.workers import Workers


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A service that answers: where, and its parts for whoever runs it in this process."""

    address: str
    admin_address: str
    engine: Engine
    store: EmbeddingStore
    metrics: Metrics


@asynccontextmanager
async def running(
    settings: Settings, *, engine: Engine | None = None, store: EmbeddingStore | None = None
) -> AsyncIterator[Running]:
    """Build the service from *settings*, run it while the block runs, and take it down.

    *engine* and *store* replace what the settings would choose.  The service has answered a
    warm-up inference and says SERVING when the block begins.
    """
    metrics = Metrics(CollectorRegistry())
    async with AsyncExitStack() as stack:
        if engine is None:
            engine = await asyncio.to_thread(_open_engine, settings.engine, metrics)
        await stack.enter_async_context(_closing(engine))
        if store is None:
            store = MemoryStore(settings.store.capacity_bytes, settings.store.ttl_s)
        await stack.enter_async_context(_closing(store))
        metrics.watch_store(store.stats)
        workers = Workers(core_count())
        stack.callback(workers.close)
        use_cases = _use_cases(settings, engine, store, workers)
        boundary = Boundary(Admission(settings.admission), settings.deadlines, metrics)
        servicer = SegmentationServicer(use_cases, boundary, settings.limits)
        api = ApiServer(servicer, settings.server, settings.limits)
        admin = Admin(metrics.registry, asyncio.get_running_loop())
        admin_port = stack.enter_context(
            admin.listening(settings.server.admin_host, settings.server.admin_port)
        )
        await stack.enter_async_context(api.serving())
        await warm_up(engine, store)
        stack.push_async_callback(_drain, api, admin, settings.server.drain_s)
        await api.set_ready(ready=True)
        admin.ready = True
        yield Running(
            address=f"{settings.server.host}:{api.port}",
            admin_address=f"{settings.server.admin_host}:{admin_port}",
            engine=engine,
            store=store,
            metrics=metrics,
        )


async def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM."""
    log = structlog.get_logger("samserve")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as service:
        log.info(
            "serving",
            address=service.address,
            admin=f"http://{service.admin_address}",
            models=list(service.engine.models),
        )
        await stop.wait()
        # Whoever asks a second time does not want to wait.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        log.info("stopping", grace_s=settings.server.grace_s)
    log.info("stopped")


def default_repository() -> Path:
    """Find the models that come with the package, or with the checkout that it runs from."""
    packaged = Path(__file__).parent / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_repository"


def _open_engine(settings: EngineSettings, metrics: Metrics) -> Engine:
    match settings.kind:
        case "fake":
            return FakeEngine()
        case "onnx":
            repository = settings.model_repository or default_repository()
            threads = settings.threads or core_count()
            return OnnxEngine(repository, threads, metrics, settings.default_model)


def _use_cases(
    settings: Settings, engine: Engine, store: EmbeddingStore, workers: Workers
) -> UseCases:
    limits = ImageLimits(settings.limits.image_pixels, settings.limits.image_side)
    embedder = Embedder(engine, store, workers, limits, settings.deadlines.embed_s)
    per_run = settings.engine.prompts_per_run
    return UseCases(embedder, Predictor(embedder, per_run), AutoMasker(embedder, per_run))


def _closing(resource: Engine | EmbeddingStore) -> aclosing[Engine | EmbeddingStore]:
    return aclosing(resource)


async def _drain(api: ApiServer, admin: Admin, drain_s: float) -> None:
    admin.ready = False
    await api.set_ready(ready=False)
    await asyncio.sleep(drain_s)

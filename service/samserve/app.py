"""The composition root: builds all components, runs them, and closes them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from samserve.admin.http import Admin
from samserve.admin.readiness import Readiness
from samserve.cache.base import EmbeddingCache
from samserve.cache.factory import cache_credentials, open_cache
from samserve.cache.local.expiry import expiring
from samserve.calls.access_log import CallRecorder
from samserve.calls.admission import Admission
from samserve.calls.methods import DOWNLOAD_DECODER, METHODS
from samserve.calls.pipeline import CallPipeline
from samserve.context import Priority
from samserve.engines.base import Engine
from samserve.engines.fake import FakeEngine
from samserve.engines.onnx import OnnxEngine
from samserve.engines.triton.engine import TritonEngine
from samserve.http.decoders import DecoderFiles
from samserve.http.server.listener import HttpListener
from samserve.http.service import http_app
from samserve.http.web.page import WebPage, open_web_page
from samserve.images import ImageLimits
from samserve.models.selection import Selection, of_repository, of_user
from samserve.rpc.file_limit import within_file_limit
from samserve.rpc.handler import CallHandler
from samserve.rpc.methods import SERVICE
from samserve.rpc.server import ApiServer
from samserve.rpc.servicer import SegmentationServicer, UseCases
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.scheduling.thread_pools import Workers
from samserve.security.authenticator import Authenticator
from samserve.security.quotas import Quotas
from samserve.security.sessions import SessionAuthenticator
from samserve.security.setup import Security, open_security
from samserve.segmentation.automask.generator import AutoMasker
from samserve.segmentation.automask.run_size import RunSize
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.embedding_files import EmbeddingFiles
from samserve.segmentation.encode import EncodeJobs
from samserve.segmentation.predict import Predictor
from samserve.segmentation.prefetch import PrefetchQueue
from samserve.segmentation.promotion import Promoter
from samserve.segmentation.warmup import warm_up
from samserve.settings import EngineSettings, Settings
from samserve.settings.folders import user_models
from samserve.system import addresses
from samserve.system.limits import core_count
from samserve.system.reloading import ReloadableFile, refreshing
from samserve.system.startup_retry import StartupRetry
from samserve.system.stop_signals import stop_signals
from samserve.telemetry.metrics import Metrics
from samserve.telemetry.metrics.rpc import CallMetrics
from samserve.telemetry.tracing import open_tracing
from samserve.telemetry.tracing.base import Tracing

_QUEUES = (("workers", Priority.INTERACTIVE), ("bulk_workers", Priority.BULK))


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A running service: its addresses, and its components for code in the same process.

    ``http_address`` is the URL of the HTTP listener, empty if it is not enabled.  ``page`` is the
    web page there, None if it is not served.  ``files`` are those that are reloaded when they
    change.
    """

    address: str
    admin_address: str
    http_address: str
    page: WebPage | None
    engine: Engine
    cache: EmbeddingCache
    metrics: Metrics
    files: Sequence[ReloadableFile[Any]]

    def show_page(self, write: Callable[[str], None]) -> None:
        """Write the address of the web page, if it is served; see `WebPage.show`."""
        if self.page is not None:
            self.page.show(addresses.reachable_url(self.http_address), write)


@asynccontextmanager
async def running(
    settings: Settings, *, engine: Engine | None = None, cache: EmbeddingCache | None = None
) -> AsyncIterator[Running]:
    """Build the service from *settings*, run it while the block runs, and close it.

    *engine* and *cache* replace those of the settings.  When the block begins, the warm-up has
    succeeded and the health service reports SERVING.
    """
    settings = within_file_limit(settings)
    metrics = Metrics(CollectorRegistry())
    security = open_security(settings)
    credentials = cache_credentials(settings)
    files = security.files if credentials is None else (*security.files, credentials)
    metrics.server.set_build_info(settings.engine.kind)
    metrics.server.register_files(files)
    async with AsyncExitStack() as stack:
        admin = Admin(metrics.registry, asyncio.get_running_loop())
        metrics.server.register_ready(lambda: admin.ready)
        admin_host = settings.server.admin_host
        admin_port = stack.enter_context(admin.listening(admin_host, settings.server.admin_port))
        engine = engine or await open_engine(settings, metrics)
        await stack.enter_async_context(aclosing(engine))
        if cache is None:
            alloc, quota = engine.allocate, security.max_cached_bytes
            tiers = open_cache(settings, alloc, lambda: engine.models, quota, credentials, metrics)
        cache = await stack.enter_async_context(tiers if cache is None else aclosing(cache))
        await stack.enter_async_context(expiring(cache))
        decoders = stack.enter_context(await asyncio.to_thread(_decoders, settings, engine))
        use_cases = _servicer(settings, engine, cache, security, metrics, decoders)
        servicer = await stack.enter_async_context(use_cases)
        tracing = await stack.enter_async_context(aclosing(open_tracing(settings.trace)))
        api, http, page = await _listeners(settings, security, servicer, decoders, metrics, tracing)
        await stack.enter_async_context(metrics.server.observing_lag())
        await stack.enter_async_context(refreshing(files, settings.tls.reload_interval_s))
        await stack.enter_async_context(_listening(api, http))
        await warm_up(engine, cache, _startup_retry(settings))
        stack.push_async_callback(asyncio.sleep, settings.server.drain_delay_s)
        follows = settings.server.readiness == "engine"
        readiness = Readiness(engine, api, admin, metrics.engine.ready.set, follows=follows)
        await stack.enter_async_context(readiness.following())
        yield Running(
            address=addresses.join(settings.server.host, api.port),
            admin_address=addresses.join(admin_host, admin_port),
            http_address="" if http is None else http.address,
            page=page,
            engine=engine,
            cache=cache,
            metrics=metrics,
            files=files,
        )


@asynccontextmanager
async def _listening(api: ApiServer, http: HttpListener | None) -> AsyncIterator[None]:
    """Serve while the block runs; both listeners then have the same time for calls in flight."""
    serving = [api.serving(), *([] if http is None else [http.serving()])]
    stacks = [AsyncExitStack() for _ in serving]
    try:
        for stack, listener in zip(stacks, serving, strict=True):
            await stack.enter_async_context(listener)
        yield
    finally:
        await asyncio.gather(*(stack.aclose() for stack in stacks))


async def serve(settings: Settings, show: Callable[[str], None]) -> None:
    """Run the service until SIGINT or SIGTERM, also during startup.

    *show* writes a line for the user: the address of the web page, which may contain a secret, so
    that it is not logged.
    """
    log = structlog.get_logger("samserve")
    with stop_signals() as stop:
        try:
            async with running(settings) as service:
                stop.cancels = None
                log.info(
                    "serving",
                    address=service.address,
                    admin=f"http://{service.admin_address}",
                    http=service.http_address or None,
                    models=list(service.engine.models),
                    transport=service.engine.transport.value,
                )
                service.show_page(show)
                await stop.requested.wait()
                log.info("stopping", grace_s=settings.server.grace_period_s)
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
        log.info("stopped")


def default_repository() -> Path:
    """Return the folder of the models of the installed package, or of the source checkout."""
    packaged = Path(__file__).parent / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "model_repository"


async def open_engine(settings: Settings, metrics: Metrics) -> Engine:
    """Open the configured engine.  Raises `EngineUnavailable`."""
    match settings.engine.kind:
        case "fake":
            return FakeEngine()
        case "onnx":
            return await asyncio.to_thread(_open_onnx, settings.engine, metrics)
        case "triton":
            default, most = settings.engine.default_model, settings.engine.max_model_bytes
            engine = TritonEngine(settings.triton, metrics, default, max_model_bytes=most)
            async with AsyncExitStack() as until_open:
                until_open.push_async_callback(engine.aclose)
                await engine.open()
                until_open.pop_all()
            return engine


def _startup_retry(settings: Settings) -> StartupRetry:
    """Return the retry policy of the startup: Triton may start later, other engines may not."""
    if settings.engine.kind == "triton":
        return StartupRetry(settings.triton.startup_timeout_s, "triton.startup_timeout_s")
    return StartupRetry(0.0)


def select_models(settings: EngineSettings) -> Selection:
    """Select the models that the in-process engine serves.  Raises `EngineUnavailable`."""
    if settings.model_repository is not None:
        return of_repository(
            settings.model_repository, settings.default_model, settings.model_names
        )
    packaged, own = default_repository(), user_models()
    return of_user(packaged, own, settings.default_model, settings.model_names)


def _open_onnx(settings: EngineSettings, metrics: Metrics) -> Engine:
    return OnnxEngine(
        select_models(settings),
        settings.threads or core_count(),
        metrics,
        max_model_bytes=settings.max_model_bytes,
    )


@asynccontextmanager
async def _servicer(
    settings: Settings,
    engine: Engine,
    cache: EmbeddingCache,
    security: Security,
    metrics: Metrics,
    decoders: DecoderFiles,
) -> AsyncIterator[SegmentationServicer]:
    """Run the use cases with their worker threads and their queue of prefetches."""
    limits = ImageLimits(settings.limits.max_image_pixels, settings.limits.max_image_side)
    deadline_s, per_run = settings.deadlines.embed_s, settings.engine.max_prompts_per_batch
    with closing(Workers(core_count())) as workers:
        async with aclosing(_prefetches(settings, security, metrics)) as prefetches:
            metrics.engine.register_state(lambda: engine.transport, lambda: engine.models)
            metrics.cache.register_stats(cache.stats)
            metrics.server.register_prefetches(lambda: prefetches.pending)
            for name, priority in _QUEUES:
                metrics.engine.register_queue(name, partial(workers.waiting, priority))
            jobs = EncodeJobs(engine, cache, workers, limits, deadline_s)
            embeddings = EmbeddingService(engine, cache, workers, limits, jobs, prefetches)
            run_size = RunSize(per_run, settings.engine.automask_batch_s)
            use_cases = UseCases(
                embeddings,
                _files(settings, security, embeddings),
                Predictor(embeddings, engine, workers, per_run),
                AutoMasker(embeddings, engine, workers, run_size),
                Promoter(engine, cache, decoders.update),
            )
            yield SegmentationServicer(
                use_cases, engine, workers, settings.limits, decoders.digests
            )


def _files(settings: Settings, security: Security, embeddings: EmbeddingService) -> EmbeddingFiles:
    files = settings.embedding_files
    return EmbeddingFiles(
        embeddings,
        TenantLimit(
            files.max_upload_bytes,
            "bytes of uploads",
            "upload_bytes",
            shared=security.has_tenants,
        ),
        files.upload_timeout_s,
        get_enabled=files.get_enabled,
        put_enabled=files.put_enabled,
    )


def _prefetches(settings: Settings, security: Security, metrics: Metrics) -> PrefetchQueue:
    admission = settings.admission
    limit = partial(TenantLimit, shared=security.has_tenants)
    return PrefetchQueue(
        limit(admission.max_prefetches, "prefetches", "prefetches"),
        limit(admission.max_prefetch_bytes, "bytes of prefetches", "prefetch_bytes"),
        lambda outcome: metrics.server.prefetches.labels(outcome).inc(),
    )


def _decoders(settings: Settings, engine: Engine) -> DecoderFiles:
    """Open the decoders that clients may download; only this process's engine knows their files."""

    def served() -> Mapping[str, Path]:
        if isinstance(engine, OnnxEngine) and settings.http.enabled:
            return engine.decoder_files
        return {}

    return DecoderFiles(lambda: engine.models, served, settings.http.decoders)


def _pipelines(
    settings: Settings,
    security: Security,
    admission: Admission,
    metrics: Metrics,
    tracing: Tracing,
) -> Callable[[Authenticator | SessionAuthenticator], CallPipeline]:
    """Return what makes a pipeline with its own check of callers; all share limits and metrics."""
    quotas = Quotas(security.policy)
    metrics.server.register_quotas(quotas.used_ratios)
    methods = (*METHODS, DOWNLOAD_DECODER) if settings.http.enabled else METHODS
    calls = CallMetrics(metrics.registry, SERVICE, {each.name: each.kind for each in methods})
    for method in methods:
        calls.set_limit(method.name, admission.limits[method.name])
    recorder = CallRecorder(SERVICE, calls, tracing)
    return lambda authenticator: CallPipeline(
        authenticator, quotas, admission, recorder, settings.server, settings.deadlines
    )


async def _listeners(
    settings: Settings,
    security: Security,
    servicer: SegmentationServicer,
    decoders: DecoderFiles,
    metrics: Metrics,
    tracing: Tracing,
) -> tuple[ApiServer, HttpListener | None, WebPage | None]:
    """Open the API listener and, if enabled, the HTTP listener with its page; they share limits."""
    page = await asyncio.to_thread(open_web_page, settings)
    admission = Admission(settings.admission, shared=security.has_tenants)
    pipeline = _pipelines(settings, security, admission, metrics, tracing)
    callers, certificate = security.authenticator, security.certificate
    handlers = servicer.handlers(CallHandler(pipeline(callers), settings.limits))
    api = ApiServer(handlers, settings.server, settings.limits, certificate, busy=admission.busy)
    if not settings.http.enabled:
        return api, None, page
    own = pipeline(callers if page is None else page.authenticator(callers))
    app = http_app(settings, servicer, own, decoders, metrics.http, page)
    http = HttpListener(app, settings.http, settings.server, certificate)
    metrics.http.register_connections(http.open_connections)
    return api, http, page

"""The whole HTTP listener, put together from the service and the pipeline of its calls."""

from __future__ import annotations

from functools import partial

from samserve.calls.pipeline import CallPipeline
from samserve.http.app import HttpApp
from samserve.http.decoders import FOLDER, DecoderEndpoint, DecoderFiles
from samserve.http.endpoints import RpcEndpoint
from samserve.http.origins import OriginPolicy
from samserve.http.web.page import DOCUMENTS, WebPage
from samserve.rpc.handler import CallHandler
from samserve.rpc.methods import SERVICE, served_methods
from samserve.rpc.servicer import SegmentationServicer
from samserve.settings import Settings
from samserve.telemetry.metrics.http import HttpMetrics


def http_app(
    settings: Settings,
    servicer: SegmentationServicer,
    pipeline: CallPipeline,
    decoders: DecoderFiles,
    metrics: HttpMetrics,
    page: WebPage | None,
) -> HttpApp:
    """Return the ASGI application that serves every method of *servicer*, *decoders* and *page*."""
    handler = CallHandler(pipeline, settings.limits)
    paths = {
        f"/{SERVICE}/{method.name}": RpcEndpoint(
            method,
            pipeline,
            partial(handler.serving, method, request, getattr(servicer, method.name)),
            settings.limits.max_request_bytes,
            metrics.count_call,
        )
        for method, request in served_methods().items()
    }
    folders = {FOLDER: DecoderEndpoint(decoders, pipeline)}
    policy, refused = OriginPolicy(settings.http), metrics.count_refused
    if page is None:
        return HttpApp(policy, paths, folders, refused)
    return HttpApp(policy, {**page.paths(), **paths}, folders, refused, DOCUMENTS)

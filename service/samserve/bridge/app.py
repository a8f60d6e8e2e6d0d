"""Puts `samserve bridge` together, runs it, and closes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from samserve.admin.http import Admin
from samserve.bridge.credentials import Credentials
from samserve.bridge.fetching.fetcher import Fetcher
from samserve.bridge.gateways import Gateways
from samserve.bridge.pipeline import BridgePipeline
from samserve.bridge.segmenter import Segmenter
from samserve.bridge.settings import BridgeSettings
from samserve.bridge.tool import Tool
from samserve.bridge.tools.cvat_nuclio import CvatNuclio
from samserve.bridge.tools.label_studio.images import TaskImages
from samserve.bridge.tools.label_studio.tool import LabelStudioTool
from samserve.bridge.tools.x_anylabeling import XAnyLabeling
from samserve.http.app import HttpApp
from samserve.http.origins import OriginPolicy
from samserve.http.server.listener import HttpListener
from samserve.security.setup import server_certificate
from samserve.system import addresses
from samserve.system.reloading import refreshing
from samserve.system.stop_signals import stop_signals
from samserve.telemetry.metrics.bridge import BridgeMetrics


@dataclass(frozen=True, slots=True, eq=False)
class RunningBridge:
    """A running bridge: the URL of its listener, HOST:PORT of its admin listener, its parts."""

    address: str
    admin_address: str
    segmenter: Segmenter
    metrics: BridgeMetrics


def tools_of(
    segmenter: Segmenter, fetcher: Fetcher, settings: BridgeSettings, stack: AsyncExitStack
) -> Iterator[Tool]:
    """Yield all tools, which *stack* closes; a new one is added here, and nowhere else."""
    yield XAnyLabeling(segmenter, settings)
    yield CvatNuclio(segmenter)
    images = TaskImages.of(fetcher, settings.label_studio, stack, settings.fetch.ca_file)
    yield LabelStudioTool(segmenter, images, settings.label_studio)


@asynccontextmanager
async def running(settings: BridgeSettings) -> AsyncIterator[RunningBridge]:
    """Run the bridge while the block runs.  Raises `Unavailable`, also for what it cannot read."""
    metrics = BridgeMetrics(CollectorRegistry())
    certificate = server_certificate(settings.tls)
    credentials = Credentials(settings.tokens)
    files = (*credentials.files, *([] if certificate is None else [certificate]))
    listener = settings.listener
    async with AsyncExitStack() as stack:
        admin = Admin(metrics.registry, asyncio.get_running_loop())
        admin_port = stack.enter_context(admin.listening(listener.admin_host, listener.admin_port))
        gateways = Gateways(settings.gateways, metrics)
        await stack.enter_async_context(gateways.connected())
        segmenter = Segmenter(gateways, settings, metrics)
        fetcher = stack.enter_context(closing(Fetcher(settings.fetch)))
        pipeline = BridgePipeline(
            tools_of(segmenter, fetcher, settings, stack), credentials, gateways, settings, metrics
        )
        policy = OriginPolicy(listener, "listener")
        app = HttpApp(policy, {}, {"": pipeline}, metrics.count_refused)
        http = HttpListener(app, listener, listener, certificate)
        metrics.register(http.open_connections, segmenter.held_images, pipeline.bytes_in_flight)
        await stack.enter_async_context(refreshing(files, settings.tls.reload_interval_s))
        await stack.enter_async_context(http.serving())
        # Not that of the gateways: without a bridge, tools could not show that these are down.
        admin.ready = True
        stack.callback(setattr, admin, "ready", False)
        yield RunningBridge(
            address=http.address,
            admin_address=addresses.join(listener.admin_host, admin_port),
            segmenter=segmenter,
            metrics=metrics,
        )


async def serve(settings: BridgeSettings) -> None:
    """Run the bridge until SIGINT or SIGTERM."""
    log = structlog.get_logger("samserve.bridge")
    with stop_signals() as stop:
        try:
            async with running(settings) as bridge:
                stop.cancels = None
                log.info(
                    "serving",
                    address=bridge.address,
                    admin=f"http://{bridge.admin_address}",
                    gateways=settings.gateways.targets,
                )
                await stop.requested.wait()
                log.info("stopping", grace_s=settings.listener.grace_period_s)
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
        log.info("stopped")

"""The observed system and its monitoring: real programs on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness.cluster.cluster import Cluster
from harness.gateway import GatewayServer
from harness.otlp import Receiver
from harness.program import HOST
from harness.prometheus.exporter import RedisExporter
from harness.prometheus.server import PrometheusServer
from harness.triton.server import TritonServer
from monitoring.series import GATEWAY_JOB, REDIS_JOB, TRITON_JOB

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "samserve" / "files" / "rules"
MODELS = ROOT / "model_repository"

# A local cache for a few embeddings, so that the shared cache is used as well, and a low
# concurrency limit, so that calls of a burst are rejected.
_SETTINGS: Mapping[str, object] = {
    "engine.kind": "triton",
    "engine.model_repository": MODELS,
    "cache.local.capacity_bytes": 14 << 20,
    "admission.max_concurrent_predict": 24,
    "trace.sampling_ratio": 0.1,
    "log.format": "json",
}
# These quotas are never exceeded; they make the metrics of quotas visible.
_POLICY = """
version = 1

[quotas.default]
requests_per_s = 500
burst = 1000
max_concurrent_embed = 64
max_concurrent_predict = 64
max_concurrent_automask = 8
"""


@dataclass(frozen=True, slots=True)
class Stack:
    """The running programs; ``folder`` contains the logs, and is removed at the end."""

    folder: Path
    cluster: Cluster
    triton: TritonServer
    gateway: GatewayServer
    receiver: Receiver
    prometheus: PrometheusServer


@contextmanager
def running(
    *,
    program: Sequence[str] = ("-m", "samserve"),
    rules: Sequence[Path] = (),
    interval_s: float = 1.0,
    prometheus_port: int = 0,
    gateway_port: int = 0,
) -> Iterator[Stack]:
    """Run a Valkey Cluster, Triton, a gateway and Prometheus, which has scraped nothing yet.

    *program* starts the gateway, see `GatewayServer`; *rules* are rule files, by default those of
    `fast_rules`.
    """
    with ExitStack() as resources:
        folder = Path(
            resources.enter_context(tempfile.TemporaryDirectory(prefix="samserve-observe-"))
        )
        cluster = resources.enter_context(Cluster())
        receiver = resources.enter_context(Receiver())
        triton = resources.enter_context(
            TritonServer(
                model_repository=MODELS,
                log=folder / "triton.log",
                extra_args=[f"--trace-config={each}" for each in _traces(receiver)],
            )
        )
        policy = folder / "policy.toml"
        policy.write_text(_POLICY)
        gateway = resources.enter_context(
            GatewayServer(
                {
                    **_SETTINGS,
                    "triton.url": triton.grpc_address,
                    "cache.shared.nodes": ",".join(cluster.addresses[:2]),
                    "trace.endpoint": f"http://{receiver.grpc_address}",
                    "auth.policy_file": policy,
                },
                program=program,
                port=gateway_port,
                log=folder / "gateway.log",
            )
        )
        exporters = [
            resources.enter_context(RedisExporter(node.address, log=folder / "exporters.log"))
            for node in cluster.nodes
        ]
        prometheus = resources.enter_context(
            PrometheusServer(
                {
                    GATEWAY_JOB: [gateway.address],
                    TRITON_JOB: [f"{HOST}:{triton.metrics_port}"],
                    REDIS_JOB: [exporter.address for exporter in exporters],
                },
                rules=rules or fast_rules(folder),
                interval_s=interval_s,
                port=prometheus_port,
                log=folder / "prometheus.log",
            )
        )
        yield Stack(folder, cluster, triton, gateway, receiver, prometheus)


def chart_rules() -> list[Path]:
    """Return the rule files of the chart."""
    return sorted(RULES.glob("*.yaml"))


def fast_rules(folder: Path) -> list[Path]:
    """Write the chart's rules into a folder, all evaluated every second.

    With their own intervals some have their first result only after minutes.
    """
    paths = []
    for source in chart_rules():
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group["interval"] = "1s"
        path = folder / source.name
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        paths.append(path)
    return paths


def _traces(receiver: Receiver) -> Iterator[str]:
    """Yield a configuration with which Triton traces only requests that carry a trace context."""
    yield "mode=opentelemetry"
    yield "rate=1000000000"
    yield "level=TIMESTAMPS"
    yield f"opentelemetry,url={receiver.http_url}"

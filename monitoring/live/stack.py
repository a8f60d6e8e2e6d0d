"""All that is observed, and who observes it: each the real program, on loopback."""

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

# Room for some embeddings in memory, so that the shared cache is asked too, and for few calls at
# once, so that a burst is refused.
_SETTINGS: Mapping[str, object] = {
    "engine.kind": "triton",
    "engine.model_repository": MODELS,
    "store.capacity_bytes": 14 << 20,
    "admission.predict": 24,
    "trace.ratio": 0.1,
    "log.format": "json",
}
# Nobody is kept from anything here, but how much of a quota is used is there to be seen.
_POLICY = """
version = 1

[quotas.default]
requests_per_s = 500
burst = 1000
embed = 64
predict = 64
automask = 8
"""


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs; ``folder`` holds the logs, and ends with it."""

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

    *program* is the gateway, as `GatewayServer` has it; *rules* are files, `quick_rules` by
    default.
    """
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="samserve-observe-")))
        cluster = held.enter_context(Cluster())
        receiver = held.enter_context(Receiver())
        triton = held.enter_context(
            TritonServer(
                model_repository=MODELS,
                log=folder / "triton.log",
                extra_args=[f"--trace-config={each}" for each in _traces(receiver)],
            )
        )
        policy = folder / "policy.toml"
        policy.write_text(_POLICY)
        gateway = held.enter_context(
            GatewayServer(
                {
                    **_SETTINGS,
                    "triton.url": triton.grpc_address,
                    "cache.nodes": ",".join(cluster.addresses[:2]),
                    "trace.endpoint": f"http://{receiver.grpc_address}",
                    "auth.policy_file": policy,
                },
                program=program,
                port=gateway_port,
                log=folder / "gateway.log",
            )
        )
        exporters = [
            held.enter_context(RedisExporter(node.address, log=folder / "exporters.log"))
            for node in cluster.nodes
        ]
        prometheus = held.enter_context(
            PrometheusServer(
                {
                    GATEWAY_JOB: [gateway.address],
                    TRITON_JOB: [f"{HOST}:{triton.metrics_port}"],
                    REDIS_JOB: [exporter.address for exporter in exporters],
                },
                rules=rules or quick_rules(folder),
                interval_s=interval_s,
                port=prometheus_port,
                log=folder / "prometheus.log",
            )
        )
        yield Stack(folder, cluster, triton, gateway, receiver, prometheus)


def chart_rules() -> list[Path]:
    """Return the files of the chart's rules."""
    return sorted(RULES.glob("*.yaml"))


def quick_rules(folder: Path) -> list[Path]:
    """Write the chart's rules into a folder, with all of them evaluated every second.

    Some else take minutes until there is a result for the first time.
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
    """Have Triton record what it is told to record, and nothing else."""
    yield "mode=opentelemetry"
    yield "rate=1000000000"
    yield "level=TIMESTAMPS"
    yield f"opentelemetry,url={receiver.http_url}"

"""Label matchers that select the series of samserve, its Triton and its cache nodes.

Job and labels are added when a target is scraped: by the chart's ServiceMonitors, or by the
configuration in `docs/operations.md`.  Another service may export metrics of the same name, and
another Triton may serve models of the same name.  Therefore each selector names its job, and each
aggregation keeps the labels `INSTALLATION_LABELS`.
"""

from __future__ import annotations

GATEWAY_JOB, TRITON_JOB, REDIS_JOB = JOBS = ("samserve", "samserve-triton", "samserve-redis")
"""Job names; the last is that of redis_exporter."""

INSTALLATION_LABELS = ("namespace", "release")
"""Labels that identify an installation.  Outside Kubernetes both may be missing."""

GATEWAY = f'job="{GATEWAY_JOB}"'
RPC = f'{GATEWAY},grpc_service="samserve.v1.SegmentationService"'
"""Calls of the API: health checks and reflection are services of the same server."""
TRITON = f'job="{TRITON_JOB}"'
TRITON_MODELS = f'{TRITON},model=~".+_(encoder|decoder)"'
"""Models of samserve: a Triton may serve other models as well."""
REDIS = f'job="{REDIS_JOB}"'


def by(*labels: str) -> str:
    """Return a grouping by *labels*, for each installation."""
    return f"by ({', '.join((*INSTALLATION_LABELS, *labels))})"


def on(*labels: str) -> str:
    """Return a vector matching on *labels*, within an installation."""
    return f"on ({', '.join((*INSTALLATION_LABELS, *labels))})"

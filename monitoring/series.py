"""Whose series a query means: the jobs and labels that targets are given when they are scraped.

The chart's ServiceMonitors give them, `docs/operations.md` has them for a Prometheus that is
configured by hand.  Another service may have metrics of the same name, and another Triton models of
the same name: each selector names its job, and each aggregation keeps apart what `OWNER` tells
apart.
"""

from __future__ import annotations

GATEWAY_JOB, TRITON_JOB, REDIS_JOB = JOBS = ("samserve", "samserve-triton", "samserve-redis")
"""Job names; the last is that of redis_exporter."""

OWNER = ("namespace", "release")
"""Labels of an installation.  Outside Kubernetes both may be missing."""

GATEWAY = f'job="{GATEWAY_JOB}"'
RPC = f'{GATEWAY},grpc_service="samserve.v1.SegmentationService"'
"""Calls of the API: health checks and reflection are services of the same server."""
TRITON = f'job="{TRITON_JOB}"'
TRITON_MODELS = f'{TRITON},model=~".+_(encoder|decoder)"'
"""Models of ours: a Triton may serve others, too."""
REDIS = f'job="{REDIS_JOB}"'


def by(*labels: str) -> str:
    """Write the grouping by *labels*, for each installation."""
    return f"by ({', '.join((*OWNER, *labels))})"


def on(*labels: str) -> str:
    """Write the matching on *labels*, within an installation."""
    return f"on ({', '.join((*OWNER, *labels))})"

"""The choices that dashboards offer, and selectors that follow them."""

from __future__ import annotations

from monitoring.dashboards.spec import Variable

NAMESPACE = Variable("namespace", "Namespace", "label_values(samserve_build_info, namespace)")
MODEL = Variable(
    "model", "Model", 'label_values(samserve_model_info{namespace=~"$namespace"}, model)'
)
METHOD = Variable(
    "method",
    "RPC",
    'label_values(grpc_server_started_total{namespace=~"$namespace"}, grpc_method)',
)

HERE = 'namespace=~"$namespace"'
"""Outside Kubernetes there is no such label; what stands for all namespaces then matches, too."""
OF_MODEL = f'{HERE},model=~"$model"'
OF_CALL = f'{OF_MODEL},grpc_method=~"$method"'
OF_TRITON = f'{HERE},model=~"($model)_(encoder|decoder)"'
"""Triton knows two models for each of ours."""
POD = "{{pod}} {{instance}}"
"""A gateway, in a legend."""


def rate(metric: str, labels: str = HERE, by: str = "") -> str:
    """Write the sum of a counter's rates, by some labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def mean(histogram: str, labels: str = HERE, by: str = "") -> str:
    """Write the mean of what a histogram observed, by some labels."""
    total, count = rate(f"{histogram}_sum", labels, by), rate(f"{histogram}_count", labels, by)
    return f"{total} / ({count} > 0)"


def quantile(part: float, histogram: str, labels: str = HERE, by: str = "") -> str:
    """Write a quantile of what a histogram observed, by some labels."""
    buckets = rate(f"{histogram}_bucket", labels, f"le, {by}" if by else "le")
    return f"histogram_quantile({part:g}, {buckets})"


def ratio(part: str, whole: str, on: str = "") -> str:
    """Write a part of a whole, if there is one; *on* are the labels of the whole."""
    matching = f"on ({on}) group_left () " if on else ""
    return f"{part} / {matching}({whole} > 0)"

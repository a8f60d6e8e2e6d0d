"""The variables of the dashboards, selectors that use them, and helpers for expressions."""

from __future__ import annotations

from monitoring import series
from monitoring.dashboards.spec import Variable

SCOPE = 'namespace=~"$namespace",release=~"$release"'
"""The chosen installations.  Series without these labels match if all are chosen."""
GATEWAY = f"{series.GATEWAY},{SCOPE}"
GATEWAY_MODEL = f'{GATEWAY},model=~"$model"'
GATEWAY_CALL = f'{GATEWAY_MODEL},grpc_method=~"$method"'
RPC = f"{series.RPC},{SCOPE}"
# Several releases may share a Triton or a cluster, which then has no release.
_SHARED = 'namespace=~"$namespace",release=~"$release|"'
TRITON = f"{series.TRITON},{_SHARED}"
"""Triton itself, its machine and its GPUs."""
TRITON_MODEL = f'{TRITON},model=~"($model)_(encoder|decoder)"'
"""Triton has two models for each model of samserve."""
REDIS = f"{series.REDIS},{_SHARED}"

NAMESPACE_VARIABLE = Variable(
    "namespace", "Namespace", f"label_values(samserve_build_info{{{series.GATEWAY}}}, namespace)"
)
RELEASE_VARIABLE = Variable(
    "release",
    "Release",
    f'label_values(samserve_build_info{{{series.GATEWAY},namespace=~"$namespace"}}, release)',
)
SCOPE_VARIABLES = (NAMESPACE_VARIABLE, RELEASE_VARIABLE)
MODEL_VARIABLE = Variable(
    "model", "Model", f"label_values(samserve_model_info{{{GATEWAY}}}, model)"
)
METHOD_VARIABLE = Variable(
    "method", "RPC", f"label_values(grpc_server_started_total{{{RPC}}}, grpc_method)"
)

POD = "{{pod}} {{instance}}"
"""A gateway, in a legend."""


def rate(metric: str, labels: str = GATEWAY, by: str = "") -> str:
    """Return the sum of a counter's rates, grouped by labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def mean(histogram: str, labels: str = GATEWAY, by: str = "") -> str:
    """Return the mean of a histogram's observations, grouped by labels."""
    total, count = rate(f"{histogram}_sum", labels, by), rate(f"{histogram}_count", labels, by)
    return f"{total} / ({count} > 0)"


def quantile(q: float, histogram: str, labels: str = GATEWAY, by: str = "") -> str:
    """Return a quantile of a histogram's observations, grouped by labels."""
    buckets = rate(f"{histogram}_bucket", labels, f"le, {by}" if by else "le")
    return f"histogram_quantile({q:g}, {buckets})"


def ratio(part: str, total: str, on: str = "") -> str:
    """Return a ratio, empty where the total is 0; *on* are the labels of the total."""
    matching = f"on ({on}) group_left () " if on else ""
    return f"{part} / {matching}({total} > 0)"

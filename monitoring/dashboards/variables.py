"""The choices that dashboards offer, and selectors that follow them."""

from __future__ import annotations

from monitoring import series
from monitoring.dashboards.spec import Variable

HERE = 'namespace=~"$namespace",release=~"$release"'
"""Where there are no such labels, what stands for all of their values matches, too."""
OURS = f"{series.GATEWAY},{HERE}"
OF_MODEL = f'{OURS},model=~"$model"'
OF_CALL = f'{OF_MODEL},grpc_method=~"$method"'
OF_RPC = f"{series.RPC},{HERE}"
# Several releases may share a Triton or a cache, which has no release then.
_SHARED = 'namespace=~"$namespace",release=~"$release|"'
TRITON = f"{series.TRITON},{_SHARED}"
"""Of Triton itself, its machine and its GPUs."""
OF_TRITON = f'{TRITON},model=~"($model)_(encoder|decoder)"'
"""Triton knows two models for each of ours."""
REDIS = f"{series.REDIS},{_SHARED}"

NAMESPACE = Variable(
    "namespace", "Namespace", f"label_values(samserve_build_info{{{series.GATEWAY}}}, namespace)"
)
RELEASE = Variable(
    "release",
    "Release",
    f'label_values(samserve_build_info{{{series.GATEWAY},namespace=~"$namespace"}}, release)',
)
OWNER = (NAMESPACE, RELEASE)
"""Whose series are shown."""
MODEL = Variable("model", "Model", f"label_values(samserve_model_info{{{OURS}}}, model)")
METHOD = Variable(
    "method", "RPC", f"label_values(grpc_server_started_total{{{OF_RPC}}}, grpc_method)"
)

POD = "{{pod}} {{instance}}"
"""A gateway, in a legend."""


def rate(metric: str, labels: str = OURS, by: str = "") -> str:
    """Write the sum of a counter's rates, by some labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def mean(histogram: str, labels: str = OURS, by: str = "") -> str:
    """Write the mean of what a histogram observed, by some labels."""
    total, count = rate(f"{histogram}_sum", labels, by), rate(f"{histogram}_count", labels, by)
    return f"{total} / ({count} > 0)"


def quantile(part: float, histogram: str, labels: str = OURS, by: str = "") -> str:
    """Write a quantile of what a histogram observed, by some labels."""
    buckets = rate(f"{histogram}_bucket", labels, f"le, {by}" if by else "le")
    return f"histogram_quantile({part:g}, {buckets})"


def ratio(part: str, whole: str, on: str = "") -> str:
    """Write a part of a whole, if there is one; *on* are the labels of the whole."""
    matching = f"on ({on}) group_left () " if on else ""
    return f"{part} / {matching}({whole} > 0)"

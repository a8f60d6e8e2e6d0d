"""Foreign series with the same names, which no rule and no panel may include."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import product

from monitoring.series import REDIS_JOB
from tests.monitoring.catalogue import LABELS, STAGES, jobs_of
from tests.monitoring.promql import labels_of

Labels = Mapping[str, str]
Series = tuple[str, Labels]
"""The name of a metric, and its labels."""

SECOND = "second"
"""The name of a second release in the same namespace."""

_OTHER_TARGET = {"instance": "other:1", "pod": "other"}
_MODEL = re.compile(r".+_(encoder|decoder)")


def foreign_series(name: str, labels: Labels) -> Iterator[Series]:
    """Yield foreign series that may exist in the same namespace beside one of samserve's series."""
    if name == "ALERTS":
        yield name, {**labels, "alertname": "CheckoutDown"}
        return
    # Another gRPC service, another Triton with models of the same name, another Redis.
    yield name, {**labels, **_foreign(name), **_OTHER_TARGET, "job": "other"}
    bare = labels["job"].removeprefix("samserve-")
    if bare != labels["job"]:
        yield name, {**labels, **_OTHER_TARGET, "job": bare}
    if name.startswith("grpc_"):
        yield name, {**labels, "grpc_service": "grpc.health.v1.Health"}
    if name.startswith("nv_") and _MODEL.fullmatch(labels.get("model", "")):
        yield name, {**labels, "model": "resnet"}


def _foreign(name: str) -> Labels:
    return {"grpc_service": "shop.v1.Checkout"} if name.startswith("grpc_") else {}


def second_release(name: str, labels: Labels) -> Series:
    """Return the same series of another release in the same namespace."""
    target = {} if ":" in name or name == "ALERTS" else _OTHER_TARGET
    return name, {**labels, **target, "release": SECOND}


def to_promql(name: str, labels: Labels) -> str:
    """Return a series in PromQL notation."""
    matchers = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{matchers}}}"


def parse_series(text: str) -> Series:
    """Parse a series that `to_promql` returned."""
    name, _, labels = text.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


_EXAMPLES = {
    "grpc_type": "UNARY",
    "grpc_service": "samserve.v1.SegmentationService",
    "grpc_method": "Embed Predict AutoMask",
    "grpc_code": "OK INTERNAL",
    "stage": " ".join(STAGES),
    "le": "0.1 0.25 1 2.5 30 +Inf",
    "reason": "OVERLOADED BACKEND",
    "kind": "memory full",
    "direction": "in out",
    "outcome": "ok failed",
    "network": "encoder decoder",
    "queue": "encoder decoder workers",
    "transport": "shared_memory message",
    "tier": "local shared",
    "result": "hit miss",
    "engine": "triton",
    "alertname": "SamserveOverloaded",
    "alertstate": "firing",
}


def own_series(recorded: Iterator[str]) -> Iterator[Series]:
    """Yield a series of every kind that a release has; *recorded* are names of recorded series."""
    for name in (*LABELS, *recorded):
        of = sorted(LABELS.get(name, labels_of(name)) - {"namespace", "release"})
        scraped = jobs_of(name) if name in LABELS and name != "ALERTS" else ()
        for values in product(*(_examples(name, each) for each in of)):
            labels = dict(zip(of, values, strict=True))
            if not scraped:
                yield name, {**labels, "release": "first"}
            for job in scraped:
                target = {**labels, "job": job, "instance": "own:1", "pod": "own"}
                # Cache nodes belong to all releases that share them.
                yield name, target if job == REDIS_JOB else {**target, "release": "first"}


def _examples(metric: str, label: str) -> list[str]:
    if label == "model" and metric.startswith("nv_"):
        return ["tiny_encoder", "tiny_decoder"]
    return _EXAMPLES.get(label, "tiny").split()


def growth(name: str, labels: Labels) -> int:
    """Return the growth of a series at each step: different for each, buckets by their bound."""
    bounds = _EXAMPLES["le"].split()
    rank = bounds.index(labels["le"]) + 1 if "le" in labels else 1
    identity = {each: text for each, text in labels.items() if each not in ("le", "namespace")}
    return rank * (1 + zlib.crc32(to_promql(name, identity).encode()) % 97)

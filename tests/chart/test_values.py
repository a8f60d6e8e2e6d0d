"""Invalid values are rejected, and the error names them."""

from __future__ import annotations

from typing import Any

import pytest
from helm_python import HelmError

from tests.chart.rendered import render
from tests.support.cases import check_all

NODES = {"cache": {"shared": {"nodes": ["valkey:6379"]}}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replica": 1}, "'replica' not allowed"),
    "unknown nested value": ({"triton": {"gpu": 1}}, "'gpu' not allowed"),
    "unknown deeply nested value": (
        {"cache": {"shared": {"tls": {"secret": "x"}}}},
        "'secret' not allowed",
    ),
    "unknown setting": ({"config": {"limits": {"promts": 3}}}, "'promts' not allowed"),
    "unknown section": ({"config": {"limit": {}}}, "'limit' not allowed"),
    "setting that the chart computes": (
        {"config": {"server": {"host": "::"}}},
        "'host' not allowed",
    ),
    "setting of a wrong type": (
        {"config": {"limits": {"max_prompts": "many"}}},
        "/config/limits/max_prompts",
    ),
    "setting out of range": (
        {"config": {"limits": {"max_prompts": 0}}},
        "/config/limits/max_prompts",
    ),
    "no pods": ({"replicas": 0}, "/replicas"),
    "fraction of a pod": ({"replicas": 1.5}, "/replicas"),
    "engine": ({"engine": "tensorrt"}, "/engine"),
    "bytes without a unit": ({"cache": {"local": {"memory": "1073741824"}}}, "/cache/local/memory"),
    "bytes as a number": ({"cache": {"local": {"memory": 1073741824}}}, "/cache/local/memory"),
    "memory that is computed": (
        {"gateway": {"resources": {"limits": {"memory": "1Gi"}}}},
        "/gateway/resources/limits/memory",
    ),
    "digest": ({"image": {"digest": "latest"}}, "/image/digest"),
    "pull policy": ({"image": {"pullPolicy": "always"}}, "/image/pullPolicy"),
    "source of models": ({"models": {"source": "s3"}}, "/models/source"),
    "model without a name": (
        {"models": {"source": "pull", "pull": {"models": [{"args": []}]}}},
        "/models/pull/models/0",
    ),
    "node without a port": ({"cache": {"shared": {"nodes": ["valkey"]}}}, "/cache/shared/nodes/0"),
    "nodes as a string": ({"cache": {"shared": {"nodes": "valkey:6379"}}}, "/cache/shared/nodes"),
    "port": ({"service": {"port": 70000}}, "/service/port"),
    "service type": ({"service": {"type": "ExternalName"}}, "/service/type"),
    "IP family": ({"service": {"ipFamilies": ["ipv6"]}}, "/service/ipFamilies/0"),
    "IP family policy": ({"service": {"ipFamilyPolicy": "Both"}}, "/service/ipFamilyPolicy"),
    "interval": ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/interval"),
    "label that is not a string": ({"podLabels": {"a": 1}}, "/podLabels/a"),
    # Combinations that the schema cannot express.
    "several pods without a shared cache": (
        {"replicas": 2},
        "replicas: 2 pods require cache.shared.nodes",
    ),
    "autoscaling without a shared cache": (
        {"engine": "onnx", "autoscaling": {"hpa": {"enabled": True}}},
        "autoscaling.maxReplicas: 8 pods require cache.shared.nodes",
    ),
    "two autoscalers": (
        {**NODES, "autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": True}}},
        "autoscaling.hpa.enabled and autoscaling.keda.enabled",
    ),
    "KEDA without Prometheus": (
        {**NODES, "autoscaling": {"keda": {"enabled": True}}},
        "autoscaling.keda.serverAddress",
    ),
    "KEDA without Triton": (
        {
            **NODES,
            "engine": "onnx",
            "autoscaling": {"keda": {"enabled": True, "serverAddress": "http://p"}},
        },
        "autoscaling.keda.enabled",
    ),
    "minimum above maximum": ({"autoscaling": {"minReplicas": 9}}, "autoscaling.minReplicas"),
    "unknown rolling update parameter": (
        {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"surge": 1}}},
        "'surge' not allowed",
    ),
    "root of a claim": (
        {"models": {"source": "claim", "claim": {"name": "x", "path": "/"}}},
        "/models/claim/path",
    ),
    "several pods that write to one claim": (
        {
            **NODES,
            "replicas": 2,
            "models": {"source": "pull", "pull": {"claim": "x", "models": [{"name": "a"}]}},
        },
        "models.pull.claim",
    ),
    "route without a Gateway": ({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs"),
    "cooldown": (
        {"autoscaling": {"keda": {"cooldownPeriodSeconds": 7200}}},
        "/autoscaling/keda/cooldownPeriodSeconds",
    ),
    "claim without a name": ({"models": {"source": "claim"}}, "models.claim.name"),
    "nothing to pull": ({"models": {"source": "pull"}}, "models.pull.models"),
    "client certificates without TLS": ({"tls": {"clientCaSecret": "x"}}, "tls.clientCaSecret"),
    "identities without certificates": (
        {"tls": {"secret": "x", "clientIdentities": ["a"]}},
        "tls.clientIdentities",
    ),
    "tokens without an issuer": ({"auth": {"jwt": {"secret": "x"}}}, "auth.jwt.issuer"),
    "page without the listener": ({"http": {"webPage": True}}, "requires http.enabled"),
    "page without credentials": (
        {"http": {"enabled": True, "webPage": True}},
        "http.webPage: requires auth.apiKeys.secret",
    ),
    "user without a password": (
        {"cache": {"shared": {"username": "x"}}},
        "cache.shared.password.secret",
    ),
    "certificates without TLS": (
        {"cache": {"shared": {"tls": {"caSecret": "x"}}}},
        "cache.shared.tls.enabled",
    ),
}


def test_invalid_values_are_rejected_by_name() -> None:
    def check(case: tuple[dict[str, Any], str]) -> None:
        values, message = case
        with pytest.raises(HelmError) as raised:
            render(values)
        assert message in str(raised.value)

    check_all(check, WRONG)

"""Wrong values are refused, and the message names them."""

from __future__ import annotations

from typing import Any

import pytest
from helm_python import HelmError

from tests.chart.rendered import render
from tests.support.together import check_all

NODES = {"cache": {"nodes": ["valkey:6379"]}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replica": 1}, "'replica' not allowed"),
    "unknown value below": ({"triton": {"gpu": 1}}, "'gpu' not allowed"),
    "unknown value deep below": ({"cache": {"tls": {"secret": "x"}}}, "'secret' not allowed"),
    "unknown setting": ({"config": {"limits": {"promts": 3}}}, "'promts' not allowed"),
    "unknown section": ({"config": {"limit": {}}}, "'limit' not allowed"),
    "setting of the chart's": ({"config": {"server": {"host": "::"}}}, "'host' not allowed"),
    "setting of a wrong type": (
        {"config": {"limits": {"prompts": "many"}}},
        "/config/limits/prompts",
    ),
    "setting out of range": ({"config": {"limits": {"prompts": 0}}}, "/config/limits/prompts"),
    "no pods": ({"replicas": 0}, "/replicas"),
    "half a pod": ({"replicas": 1.5}, "/replicas"),
    "engine": ({"engine": "tensorrt"}, "/engine"),
    "bytes without a unit": ({"cache": {"memory": "1073741824"}}, "/cache/memory"),
    "bytes as a number": ({"cache": {"memory": 1073741824}}, "/cache/memory"),
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
    "node without a port": ({"cache": {"nodes": ["valkey"]}}, "/cache/nodes/0"),
    "nodes as text": ({"cache": {"nodes": "valkey:6379"}}, "/cache/nodes"),
    "port": ({"service": {"port": 70000}}, "/service/port"),
    "kind of service": ({"service": {"type": "ExternalName"}}, "/service/type"),
    "family of addresses": ({"service": {"ipFamilies": ["ipv6"]}}, "/service/ipFamilies/0"),
    "policy of families": ({"service": {"ipFamilyPolicy": "Both"}}, "/service/ipFamilyPolicy"),
    "interval": ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/interval"),
    "label that is no text": ({"podLabels": {"a": 1}}, "/podLabels/a"),
    # What no schema can say.
    "pods that share nothing": ({"replicas": 2}, "replicas: 2 pods need cache.nodes"),
    "pods that may come to share nothing": (
        {"engine": "onnx", "autoscaling": {"hpa": {"enabled": True}}},
        "autoscaling.maxReplicas: 8 pods need cache.nodes",
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
    "more pods than the most": ({"autoscaling": {"minReplicas": 9}}, "autoscaling.minReplicas"),
    "rolling update of another kind": (
        {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"surge": 1}}},
        "'surge' not allowed",
    ),
    "root of a claim": (
        {"models": {"source": "claim", "claim": {"name": "x", "path": "/"}}},
        "/models/claim/path",
    ),
    "several pods that fill one claim": (
        {
            **NODES,
            "replicas": 2,
            "models": {"source": "pull", "pull": {"claim": "x", "models": [{"name": "a"}]}},
        },
        "models.pull.claim",
    ),
    "route to nowhere": ({"grpcRoute": {"enabled": True}}, "grpcRoute.parentRefs"),
    "cooldown": (
        {"autoscaling": {"keda": {"cooldownSeconds": 7200}}},
        "/autoscaling/keda/cooldownSeconds",
    ),
    "claim without a name": ({"models": {"source": "claim"}}, "models.claim.name"),
    "nothing to pull": ({"models": {"source": "pull"}}, "models.pull.models"),
    "client certificates without TLS": ({"tls": {"clientCaSecret": "x"}}, "tls.clientCaSecret"),
    "identities without certificates": (
        {"tls": {"secret": "x", "clientIdentities": ["a"]}},
        "tls.clientIdentities",
    ),
    "tokens of nobody": ({"auth": {"jwt": {"secret": "x"}}}, "auth.jwt.issuer"),
    "user without a password": ({"cache": {"username": "x"}}, "cache.password.secret"),
    "certificates without TLS": ({"cache": {"tls": {"caSecret": "x"}}}, "cache.tls.enabled"),
}


def test_a_wrong_value_is_refused_by_its_name() -> None:
    def check(case: tuple[dict[str, Any], str]) -> None:
        values, message = case
        with pytest.raises(HelmError) as refused:
            render(values)
        assert message in str(refused.value)

    check_all(check, WRONG)

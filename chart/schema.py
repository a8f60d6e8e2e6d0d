"""The schema of the chart's values: closed, so that a misspelt one is refused by its name.

Types come from the defaults in values.yaml.  `RULES` says what a default cannot, and `config` has
the schema of the gateway's own settings, without those that the chart decides.
"""

from __future__ import annotations

from typing import Any

from samserve.settings import Settings

Schema = dict[str, Any]

# Settings that follow from other values.
DECIDED = {
    "server": {
        *("host", "port", "admin_host", "admin_port", "plaintext"),
        *("drain_s", "grace_s", "connection_age_s", "readiness"),
    },
    "tls": {"cert_file", "key_file", "client_ca_file", "client_identities"},
    "auth": {"keys_file", "jwks_file", "jwt_issuer", "jwt_audience", "policy_file"},
    "engine": {"kind", "model_repository", "default_model"},
    "triton": {"url", "shared_memory", "shared_memory_group", "scratch_bytes", "startup_s"},
    "store": {"capacity_bytes", "ttl_s"},
    "cache": {
        *("nodes", "username", "password_file", "tls", "ca_file", "cert_file", "key_file"),
    },
}

_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_WORDS: Schema = {"type": "array", "items": {"type": "string"}}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_BYTES: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"}
_DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
_PULL: Schema = {"enum": ["Always", "IfNotPresent", "Never"]}
_NODE: Schema = {"type": "string", "pattern": "^[^ ,:]+:[0-9]+$|^\\[[0-9a-fA-F:.]+\\]:[0-9]+$"}
_AMOUNT: Schema = {"type": ["integer", "string"], "pattern": "^[0-9]+%$", "minimum": 0}
_NAME: Schema = {"type": "string", "minLength": 1}
_PULLED: Schema = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": _NAME, "args": _WORDS},
}

# By the last parts of a value's path; the longest that fits counts.
RULES: dict[str, Schema] = {
    "commonLabels": _TEXTS,
    "labels": _TEXTS,
    "annotations": _TEXTS,
    "podLabels": _TEXTS,
    "podAnnotations": _TEXTS,
    "nodeSelector": _TEXTS,
    "image.repository": _NAME,
    "models.image.repository": {"type": "string"},
    "digest": _DIGEST,
    "pullPolicy": _PULL,
    "imagePullSecrets": _OBJECTS,
    "replicas": _COUNT,
    "minReplicas": _COUNT,
    "maxReplicas": _COUNT,
    "fallbackReplicas": _COUNT,
    "engine": {"enum": ["triton", "onnx"]},
    "topology": {"enum": ["pod", "split"]},
    "memory": _BYTES,
    "scratch": _BYTES,
    "sizeLimit": _BYTES,
    "gateway.resources": {
        "type": "object",
        "properties": {
            each: {"type": "object", "properties": {"memory": False}}
            for each in ("requests", "limits")
        },
    },
    "resources": _OBJECT,
    "extraEnv": _OBJECTS,
    "extraVolumeMounts": _OBJECTS,
    "extraVolumes": _OBJECTS,
    "extraObjects": _OBJECTS,
    "extraArgs": _WORDS,
    "gpus": {"type": "integer", "minimum": 0},
    "startupSeconds": _COUNT,
    "claim.path": {"type": "string", "pattern": "[^/]"},
    "models.source": {"enum": ["image", "claim", "pull"]},
    "models.image.path": {"type": "string", "pattern": "^(/.*)?$"},
    "pull.models": {"type": "array", "items": _PULLED},
    "ttlSeconds": {"type": "number", "exclusiveMinimum": 0},
    "nodes": {"type": "array", "items": _NODE},
    "clientIdentities": _WORDS,
    "drainSeconds": {"type": "integer", "minimum": 0},
    "graceSeconds": {"type": "integer", "minimum": 0},
    "maxConnectionAgeSeconds": _SECONDS,
    "ipFamilyPolicy": {"enum": ["", "SingleStack", "PreferDualStack", "RequireDualStack"]},
    "ipFamilies": {
        "type": "array",
        "items": {"enum": ["IPv4", "IPv6"]},
        "uniqueItems": True,
    },
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "parentRefs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "hostnames": _WORDS,
    "filters": _OBJECTS,
    "target": _COUNT,
    "behavior": _OBJECT,
    "queueMilliseconds": _COUNT,
    "pollingSeconds": _COUNT,
    # No more than a HorizontalPodAutoscaler takes.
    "cooldownSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
    "authModes": {"enum": ["bearer", "basic", "tls", "custom"]},
    "maxUnavailable": _AMOUNT,
    "updateStrategy": {
        "type": "object",
        "required": ["type"],
        "additionalProperties": False,
        "properties": {
            "type": {"enum": ["RollingUpdate", "Recreate"]},
            "rollingUpdate": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"maxSurge": _AMOUNT, "maxUnavailable": _AMOUNT},
            },
        },
    },
    "clients": _OBJECTS,
    "monitoring": _OBJECTS,
    "networkPolicy.cache": _OBJECTS,
    "extraEgress": _OBJECTS,
    "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
    "relabelings": _OBJECTS,
    "metricRelabelings": _OBJECTS,
    "podSecurityContext": _OBJECT,
    "securityContext": _OBJECT,
    "tolerations": _OBJECTS,
    "affinity": _OBJECT,
    "topologySpreadConstraints": _OBJECTS,
}


def schema(values: dict[str, Any]) -> Schema:
    """Make the schema of *values*, the defaults."""
    root = _of(values, ())
    # Charts that have this one as a part may set it.
    root["properties"]["global"] = {"type": "object"}
    root["properties"]["config"], definitions = _settings()
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of samserve",
        **root,
        "definitions": definitions,
    }


def _of(value: Any, path: tuple[str, ...]) -> Schema:
    rule = _rule(path)
    if rule is not None:
        return rule
    if isinstance(value, dict):
        properties = {name: _of(each, (*path, name)) for name, each in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, str):
        return {"type": "string"}
    raise ValueError(f"{'.'.join(path)}: needs a rule")


def _rule(path: tuple[str, ...]) -> Schema | None:
    if path == ("config",):
        return {}
    names = (".".join(path[start:]) for start in range(len(path)))
    return next((RULES[name] for name in names if name in RULES), None)


def _settings() -> tuple[Schema, Schema]:
    """Return the schema of `config`, and the definitions that it refers to."""
    whole = Settings.model_json_schema(ref_template="#/definitions/{model}")
    properties = whole["properties"]
    definitions = {name: _plain(each) for name, each in whole["$defs"].items()}
    for section, names in DECIDED.items():
        kind = properties[section]["$ref"].rsplit("/", 1)[1]
        for name in names:
            del definitions[kind]["properties"][name]
    sections = {name: {"$ref": each["$ref"]} for name, each in properties.items()}
    return {"type": "object", "additionalProperties": False, "properties": sections}, definitions


def _plain(schema: Any) -> Any:
    """Leave out what repeats names and what the defaults of the gateway are."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Properties may have these names, too, but then they are schemas.
    return {
        name: _plain(each)
        for name, each in schema.items()
        if not (name in ("title", "default", "description", "format") and _is_plain(each))
    }


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict)

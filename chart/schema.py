"""Generates the schema of the chart's values, which rejects unknown values by name.

Types are derived from the defaults in values.yaml. `RULES` has the constraints that a default does
not imply. `config` has the schema of the gateway's settings, without those that the chart computes.
"""

from __future__ import annotations

from typing import Any

from pydantic_settings import BaseSettings
from samserve.bridge.settings import BridgeSettings
from samserve.settings import Settings, renames

Schema = dict[str, Any]

# Settings that the chart computes from other values, by section.
COMPUTED_SETTINGS = {
    "server": {
        *("host", "port", "admin_host", "admin_port", "allow_plaintext"),
        *("drain_delay_s", "grace_period_s", "max_connection_age_s", "readiness"),
    },
    "http": {"enabled", "host", "port", "allowed_hosts", "allowed_origins", "web_page"},
    "tls": {"cert_file", "key_file", "client_ca_file", "client_identities"},
    "auth": {"api_keys_file", "jwks_file", "jwt_issuer", "jwt_audience", "policy_file"},
    "engine": {"kind", "model_repository", "default_model"},
    "triton": {
        *("url", "shared_memory", "shared_memory_group"),
        *("shared_memory_pool_bytes", "startup_timeout_s"),
    },
    "cache": {"ttl_s"},
    "cache.local": {"capacity_bytes"},
    "cache.shared": {
        *("nodes", "username", "password_file", "tls", "ca_file", "cert_file", "key_file"),
    },
}

# The same, of the bridge.
COMPUTED_BRIDGE_SETTINGS = {
    "listener": {
        *("host", "port", "admin_host", "admin_port", "allow_plaintext", "allowed_hosts"),
        "grace_period_s",
    },
    "tls": {"cert_file", "key_file"},
    "gateways": {
        *("targets", "tls", "ca_file", "cert_file", "key_file", "server_name", "allow_plaintext"),
    },
    "tokens": {"file", "credential_file"},
    "label_studio": {"url", "token_file"},
}

# New names of renamed values, by old name. Can be removed with the first release after 1.0.
RENAMED = {
    "cache.memory": "cache.local.memory",
    "cache.scratch": "triton.sharedMemoryPool",
    "cache.nodes": "cache.shared.nodes",
    "cache.username": "cache.shared.username",
    "cache.password": "cache.shared.password",
    "cache.tls": "cache.shared.tls",
    "triton.startupSeconds": "triton.startupTimeoutSeconds",
    "shutdown.drainSeconds": "shutdown.drainDelaySeconds",
    "shutdown.graceSeconds": "shutdown.gracePeriodSeconds",
    "autoscaling.keda.queueMilliseconds": "autoscaling.keda.queueTimeMilliseconds",
    "autoscaling.keda.pollingSeconds": "autoscaling.keda.pollingIntervalSeconds",
    "autoscaling.keda.cooldownSeconds": "autoscaling.keda.cooldownPeriodSeconds",
}

_NEW_SECTION: Schema = {"type": "object", "additionalProperties": False}
_STRING_MAP: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_STRINGS: Schema = {"type": "array", "items": {"type": "string"}}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_BYTES: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"}
_DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
_PULL_POLICY: Schema = {"enum": ["Always", "IfNotPresent", "Never"]}
_HOST_PORT: Schema = {"type": "string", "pattern": "^[^ ,:]+:[0-9]+$|^\\[[0-9a-fA-F:.]+\\]:[0-9]+$"}
_COUNT_OR_PERCENTAGE: Schema = {"type": ["integer", "string"], "pattern": "^[0-9]+%$", "minimum": 0}
_NAME: Schema = {"type": "string", "minLength": 1}
_PULLED_MODEL: Schema = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": _NAME, "args": _STRINGS},
}

# Schemas by the last parts of a value's path; the longest match applies.
RULES: dict[str, Schema] = {
    "commonLabels": _STRING_MAP,
    "labels": _STRING_MAP,
    "annotations": _STRING_MAP,
    "podLabels": _STRING_MAP,
    "podAnnotations": _STRING_MAP,
    "nodeSelector": _STRING_MAP,
    "image.repository": _NAME,
    "models.image.repository": {"type": "string"},
    "digest": _DIGEST,
    "pullPolicy": _PULL_POLICY,
    "imagePullSecrets": _OBJECTS,
    "replicas": _COUNT,
    "shards": _COUNT,
    "parallelism": _COUNT,
    "backoffLimitPerIndex": {"type": "integer", "minimum": 0},
    "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
    "minReplicas": _COUNT,
    "maxReplicas": _COUNT,
    "fallbackReplicas": _COUNT,
    "engine": {"enum": ["triton", "onnx"]},
    "topology": {"enum": ["pod", "split"]},
    "memory": _BYTES,
    "sharedMemoryPool": _BYTES,
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
    "extraArgs": _STRINGS,
    "gpus": {"type": "integer", "minimum": 0},
    "startupTimeoutSeconds": _COUNT,
    "claim.path": {"type": "string", "pattern": "[^/]"},
    "models.source": {"enum": ["image", "claim", "pull"]},
    "models.image.path": {"type": "string", "pattern": "^(/.*)?$"},
    "pull.models": {"type": "array", "items": _PULLED_MODEL},
    "ttlSeconds": {"type": "number", "exclusiveMinimum": 0},
    "nodes": {"type": "array", "items": _HOST_PORT},
    "clientIdentities": _STRINGS,
    "allowedHosts": {"type": "array", "items": {"type": "string", "pattern": "^[^ ,]+$"}},
    "allowedOrigins": {
        "type": "array",
        "items": {"type": "string", "pattern": "^https?://[^ ,/*]+$"},
    },
    "drainDelaySeconds": {"type": "integer", "minimum": 0},
    "gracePeriodSeconds": {"type": "integer", "minimum": 0},
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
    "hostnames": _STRINGS,
    "filters": _OBJECTS,
    "target": _COUNT,
    "behavior": _OBJECT,
    "queueTimeMilliseconds": _COUNT,
    "pollingIntervalSeconds": _COUNT,
    # The maximum of a HorizontalPodAutoscaler's stabilization window.
    "cooldownPeriodSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
    "authModes": {"enum": ["bearer", "basic", "tls", "custom"]},
    "maxUnavailable": _COUNT_OR_PERCENTAGE,
    "updateStrategy": {
        "type": "object",
        "required": ["type"],
        "additionalProperties": False,
        "properties": {
            "type": {"enum": ["RollingUpdate", "Recreate"]},
            "rollingUpdate": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "maxSurge": _COUNT_OR_PERCENTAGE,
                    "maxUnavailable": _COUNT_OR_PERCENTAGE,
                },
            },
        },
    },
    "clients": _OBJECTS,
    "monitoring": _OBJECTS,
    "networkPolicy.cache": _OBJECTS,
    "extraEgress": _OBJECTS,
    "egress": _OBJECTS,
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
    """Return the JSON schema of *values*, the defaults."""
    root = _schema_of(values, ())
    # Parent charts may set it.
    root["properties"]["global"] = {"type": "object"}
    root["properties"]["config"], definitions = _settings_schema(Settings, COMPUTED_SETTINGS)
    for old, new in renames.SETTINGS.items():
        sections = root["properties"]["config"]["properties"]
        _reject_renamed(sections, definitions, old, f"config.{new}")
    bridge = root["properties"]["bridge"]["properties"]
    bridge["config"], more = _settings_schema(BridgeSettings, COMPUTED_BRIDGE_SETTINGS, "Bridge")
    definitions |= more
    for old, new in RENAMED.items():
        _reject_renamed(root["properties"], definitions, old, new)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of samserve",
        **root,
        "definitions": definitions,
    }


def _schema_of(value: Any, path: tuple[str, ...]) -> Schema:
    rule = _find_rule(path)
    if rule is not None:
        return rule
    if isinstance(value, dict):
        properties = {name: _schema_of(each, (*path, name)) for name, each in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, str):
        return {"type": "string"}
    raise ValueError(f"{'.'.join(path)}: requires an entry in RULES")


def _find_rule(path: tuple[str, ...]) -> Schema | None:
    if path in (("config",), ("bridge", "config")):
        return {}
    names = (".".join(path[start:]) for start in range(len(path)))
    return next((RULES[name] for name in names if name in RULES), None)


def _settings_schema(
    kind: type[BaseSettings], computed: dict[str, set[str]], prefix: str = ""
) -> tuple[Schema, Schema]:
    """Return the schema of settings and the definitions that it references.

    *prefix* distinguishes the names of definitions from those of other settings.
    """
    whole = kind.model_json_schema(ref_template=f"#/definitions/{prefix}{{model}}")
    properties = whole["properties"]
    definitions = {
        f"{prefix}{name}": _without_annotations(each) for name, each in whole["$defs"].items()
    }
    sections = {name: {"$ref": each["$ref"]} for name, each in properties.items()}
    whole = {"type": "object", "additionalProperties": False, "properties": sections}
    for path, names in computed.items():
        section = _properties(sections, definitions, path.split("."))
        for name in names:
            del section[name]
    return whole, definitions


def _properties(properties: Schema, definitions: Schema, path: list[str]) -> Schema:
    """Return the properties of the object at *path*, created if missing."""
    for name in path:
        value = properties.setdefault(name, dict(_NEW_SECTION, properties={}))
        if "$ref" in value:
            value = definitions[value["$ref"].rsplit("/", 1)[1]]
        properties = value["properties"]
    return properties


def _reject_renamed(properties: Schema, definitions: Schema, old: str, new: str) -> None:
    """Reject a value under its old name; Helm's error quotes the only allowed constant."""
    *path, name = old.split(".")
    owner = _properties(properties, definitions, path)
    owner.setdefault(name, {"const": f"renamed to {new}"})


def _without_annotations(schema: Any) -> Any:
    """Remove titles, defaults, descriptions and formats."""
    if isinstance(schema, list):
        return [_without_annotations(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # A property may have one of these names; its value is then a schema.
    return {
        name: _without_annotations(each)
        for name, each in schema.items()
        if not (name in ("title", "default", "description", "format") and _is_annotation(each))
    }


def _is_annotation(value: Any) -> bool:
    return not isinstance(value, dict)

"""Loads versions of models into Triton beside those in service, and unloads them.

Triton keeps the configuration of the version in service while both are loaded: only its list of
versions changes, so Triton neither loads that version again nor interrupts it.  When the old
version has no calls left, it is unloaded first, and then the configuration of the new version
replaces that of the old one; for that Triton loads the new version once more, beside itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import RequestTimeout, Unreachable
from samserve.engines.versions import check_memory
from samserve.errors import EngineUnavailable, PromotionRefused, SamserveError
from samserve.models.repository import Bundle, ModelConfig, parameter
from samserve.models.versions import bundle_from
from samserve.types import ModelVersion

# Large models on a GPU take minutes.
_LOAD_TIMEOUT_S = 600.0


async def load_beside(
    connection: TritonConnection,
    version: ModelVersion,
    current: Bundle[str],
    max_model_bytes: int,
    *,
    local: bool,
) -> tuple[Bundle[str], Mapping[str, ModelConfig]]:
    """Load a version beside the *current* one; return it and its configurations by role.

    *local* is whether Triton is on this machine.  Raises `PromotionRefused`, `MemoryExhausted` or
    `EngineUnavailable`; then Triton serves what it served before.
    """
    bundle, configs = bundle_from(version)
    served = {role: await connection.config(name) for role, name in current.graphs.items()}
    changed = [role for role in configs if bundle.versions[role] != current.versions.get(role)]
    for role in changed:
        _check_tensors(served[role], configs[role])
    instances = max(
        sum(group.count for group in served[role].instance_group) or 1 for role in changed
    )
    check_memory(version.new_bytes * instances, version.served_bytes, max_model_bytes, local=local)
    loaded: list[str] = []
    try:
        for role in changed:
            loaded.append(role)
            both = {int(current.versions[role]), int(bundle.versions[role])}
            await _load(connection, served[role], sorted(both))
    except BaseException:
        for role in loaded:
            await _load(connection, served[role], [int(current.versions[role])])
        raise
    return bundle, configs


async def unload(
    connection: TritonConnection,
    old: Bundle[str],
    serving: Bundle[str],
    configs: Mapping[str, ModelConfig],
) -> None:
    """Unload the versions of *old* that the version in service does not use.

    *configs* are those of the version in service, by role, if this gateway has put it there.
    Triton would not read the file again: it has seen its change when it loaded other versions.
    """
    for role, name in serving.graphs.items():
        if old.versions.get(role) == serving.versions[role]:
            continue
        config = await connection.config(name)
        keep = int(serving.versions[role])
        if list(config.version_policy.specific.versions) != [keep]:
            await _load(connection, config, [keep])
        described = parameter(config, "version") == serving.versions[role]
        if not described and role in configs:
            await _load(connection, configs[role], [keep])


async def _load(connection: TritonConnection, config: ModelConfig, versions: list[int]) -> None:
    """Load these versions of a graph, with its configuration otherwise unchanged."""
    changed = model_config_pb2.ModelConfig()
    changed.CopyFrom(config)
    changed.version_policy.Clear()
    changed.version_policy.specific.versions.extend(versions)
    fields = json_format.MessageToDict(changed, preserving_proto_field_name=True)
    try:
        await connection.load(config.name, json.dumps(fields), _LOAD_TIMEOUT_S)
    except (RequestTimeout, Unreachable, EngineUnavailable):
        raise
    except SamserveError as error:
        raise PromotionRefused(
            f"Triton does not load version {versions[-1]} of {config.name!r}: {error.message}; it "
            "needs --model-control-mode=explicit"
        ) from error


def _check_tensors(served: ModelConfig, new: ModelConfig) -> None:
    """Raise `PromotionRefused` for other tensors: Triton has one configuration for all versions."""
    if _tensors(served) != _tensors(new):
        raise PromotionRefused(
            f"the new version of {new.name!r} has other inputs or outputs than the one in service; "
            "Triton serves both only with the same: replace the model and load it again"
        )


def _tensors(config: ModelConfig) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (each.name, each.data_type, tuple(each.dims)) for each in (*config.input, *config.output)
    ]

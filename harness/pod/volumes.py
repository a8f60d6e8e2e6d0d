"""Volumes as directories; translates container paths and ports in arguments and settings."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samserve.system.addresses import join, split

from harness.errors import HarnessError
from harness.pod.images import IMAGE_PATHS

Object = Mapping[str, Any]

SHARED_MEMORY = "/dev/shm"  # noqa: S108
# A port of the pod, in the form in which its own containers connect to it.
_LOOPBACK = re.compile(r"(127\.0\.0\.1|\[::1\]|localhost):(\d+)")
# Settings of the gateway with a port, alone or after a host.
_PORT_SETTINGS = {
    *("server.port", "server.admin_port", "triton.url"),
    *("listener.port", "listener.admin_port"),
}


@dataclass(frozen=True, kw_only=True)
class References:
    """What a pod refers to: ConfigMaps and Secrets by name, claims, addresses of Services."""

    config_maps: Mapping[str, Object] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)

    def content(self, volume: Object) -> dict[str, bytes]:
        """Return the files of a ConfigMap or Secret volume."""
        if "secret" in volume:
            keys = self.secrets[volume["secret"]["secretName"]]
            return {item["path"]: keys[item["key"]] for item in volume["secret"]["items"]}
        source = self.config_maps[volume["configMap"]["name"]]
        texts = {name: text.encode() for name, text in source.get("data", {}).items()}
        binary = source.get("binaryData", {})
        return texts | {name: base64.b64decode(text) for name, text in binary.items()}


class Volumes:
    """The directories of a pod's volumes, and its ports."""

    def __init__(
        self, volumes: list[Object], references: References, folder: Path, ports: dict[int, int]
    ) -> None:
        """Create the directories; *ports* maps each container port to its local port."""
        self._references = references
        self._ports = ports
        self._folders = {each["name"]: self._create(each, folder) for each in volumes}

    def port(self, port: int) -> int:
        """Return the local port of a container port."""
        return self._ports[port]

    def translate(self, text: str, mounts: list[Object]) -> str:
        """Return an argument or environment value with local paths and ports."""
        name, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
        if name.endswith("-port"):
            return f"{name}={self.port(int(value))}"
        loopback = _LOOPBACK.fullmatch(value)
        if loopback is not None and int(loopback[2]) in self._ports:
            return f"{name}{equals}{join(loopback[1], self.port(int(loopback[2])))}"
        return f"{name}{equals}{self._service(self.path(value, mounts))}"

    def path(self, path: str, mounts: list[Object]) -> str:
        """Return the local path of a container path; other text is returned unchanged."""
        folders = {each["mountPath"]: self._folders[each["name"]] for each in mounts}
        for prefix, folder in [*folders.items(), *IMAGE_PATHS.items()]:
            if path == prefix or path.startswith(f"{prefix}/"):
                return f"{folder}{path.removeprefix(prefix)}"
        return path

    def _service(self, text: str) -> str:
        return self._references.services.get(text, text)

    def _create(self, volume: Object, folder: Path) -> Path:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            # Not a directory of its own: shared memory segments have the same names as in a pod.
            return Path(SHARED_MEMORY)
        if "persistentVolumeClaim" in volume:
            return self._references.claims[volume["persistentVolumeClaim"]["claimName"]]
        created = folder / str(volume["name"])
        created.mkdir()
        if "emptyDir" not in volume:
            for name, content in self._references.content(volume).items():
                (created / name).write_bytes(content)
        return created

    def translate_config(self, path: Path, mounts: list[Object]) -> None:
        """Rewrite the settings file *path* of a gateway or a bridge with local paths and ports."""
        settings = tomllib.loads(path.read_text())
        lines = [
            line
            for section, values in settings.items()
            for line in self._section(section, values, mounts)
        ]
        path.write_text("\n".join(lines))

    def _section(self, section: str, values: Object, mounts: list[Object]) -> Iterator[str]:
        yield f"[{section}]"
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        for name, value in values.items():
            if name not in tables:
                local = self._setting(f"{section}.{name}", value, mounts)
                yield f"{name} = {json.dumps(local)}"
        for name, table in tables.items():
            yield from self._section(f"{section}.{name}", table, mounts)

    def _setting(self, name: str, value: Any, mounts: list[Object]) -> Any:
        if name in _PORT_SETTINGS and isinstance(value, int):
            return self.port(value)
        if value in self._references.services:
            return self._service(value)
        if name in _PORT_SETTINGS:
            host, port = split(value)
            return join(host, self.port(port))
        return self.path(value, mounts) if isinstance(value, str) else value


def ports_of(spec: Object) -> list[int]:
    """Return the ports that containers declare, and Triton's gRPC port, which is not declared."""
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    ports = [port["containerPort"] for each in containers for port in each.get("ports", [])]
    if len(ports) != len(set(ports)):
        raise HarnessError("two containers of a pod have the same port")
    return ports if 8001 in ports else [*ports, 8001]

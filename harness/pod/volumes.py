"""Volumes as folders, and what that changes in the texts that a container reads."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samserve.system.addresses import join, split

from harness.errors import HarnessError
from harness.pod.images import FILES

Object = Mapping[str, Any]

SHARED_MEMORY = "/dev/shm"  # noqa: S108
# A port of the pod, as its own containers ask for it.
_OWN = re.compile(r"(127\.0\.0\.1|\[::1\]|localhost):(\d+)")
# Where a setting of the gateway holds a port, alone or after a host.
_PORTS = {("server", "port"), ("server", "admin_port"), ("triton", "url")}


@dataclass(frozen=True, kw_only=True)
class World:
    """What a pod refers to: ConfigMaps and Secrets by name, claims, addresses of services."""

    config_maps: Mapping[str, Object] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)

    def content(self, volume: Object) -> dict[str, bytes]:
        """Return the files of a volume that is made from a ConfigMap or a Secret."""
        if "secret" in volume:
            keys = self.secrets[volume["secret"]["secretName"]]
            return {item["path"]: keys[item["key"]] for item in volume["secret"]["items"]}
        given = self.config_maps[volume["configMap"]["name"]]
        texts = {name: text.encode() for name, text in given.get("data", {}).items()}
        binary = given.get("binaryData", {})
        return texts | {name: base64.b64decode(text) for name, text in binary.items()}


class Volumes:
    """The folders of a pod's volumes, and its ports."""

    def __init__(self, volumes: list[Object], world: World, folder: Path, ports: dict[int, int]):
        """Make them; *ports* are those of the containers, each with the one that it has here."""
        self._world = world
        self._ports = ports
        self._folders = {each["name"]: self._make(each, folder) for each in volumes}

    def port(self, port: int) -> int:
        """Where a port of a container is."""
        return self._ports[port]

    def text(self, text: str, mounts: list[Object]) -> str:
        """Return an argument, or a value of an environment, with the paths and ports of here."""
        name, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
        if name.endswith("-port"):
            return f"{name}={self.port(int(value))}"
        own = _OWN.fullmatch(value)
        if own is not None and int(own[2]) in self._ports:
            return f"{name}{equals}{join(own[1], self.port(int(own[2])))}"
        return f"{name}{equals}{self._service(self.path(value, mounts))}"

    def path(self, path: str, mounts: list[Object]) -> str:
        """Return the path that *path* of a container has here; what is no path stays as it is."""
        places = {each["mountPath"]: self._folders[each["name"]] for each in mounts}
        for start, folder in [*places.items(), *FILES.items()]:
            if path == start or path.startswith(f"{start}/"):
                return f"{folder}{path.removeprefix(start)}"
        return path

    def _service(self, text: str) -> str:
        return self._world.services.get(text, text)

    def _make(self, volume: Object, folder: Path) -> Path:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            # Ours has no size of its own: segments have the names that they would have.
            return Path(SHARED_MEMORY)
        if "persistentVolumeClaim" in volume:
            return self._world.claims[volume["persistentVolumeClaim"]["claimName"]]
        made = folder / str(volume["name"])
        made.mkdir()
        if "emptyDir" not in volume:
            for name, content in self._world.content(volume).items():
                (made / name).write_bytes(content)
        return made

    def translate_config(self, path: Path, mounts: list[Object]) -> None:
        """Return the gateway's settings in *path* the paths and ports of here."""
        settings = tomllib.loads(path.read_text())
        lines = []
        for section, values in settings.items():
            lines.append(f"[{section}]")
            for name, value in values.items():
                here = self._setting((section, name), value, mounts)
                lines.append(f"{name} = {json.dumps(here)}")
        path.write_text("\n".join(lines))

    def _setting(self, name: tuple[str, str], value: Any, mounts: list[Object]) -> Any:
        if name in _PORTS and isinstance(value, int):
            return self.port(value)
        if value in self._world.services:
            return self._service(value)
        if name in _PORTS:
            host, port = split(value)
            return join(host, self.port(port))
        return self.path(value, mounts) if isinstance(value, str) else value


def ports_of(spec: Object) -> list[int]:
    """Return the ports that containers declare, and Triton's, which are not declared."""
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    ports = [port["containerPort"] for each in containers for port in each.get("ports", [])]
    if len(ports) != len(set(ports)):
        raise HarnessError("two containers of a pod have the same port")
    return ports if 8001 in ports else [*ports, 8001]

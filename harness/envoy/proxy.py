"""Envoy as a load balancer of gRPC calls over gateways, like an ingress of a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.envoy.process import Envoy, address
from harness.errors import HarnessError

CONFIG = Path(__file__).with_name("proxy.yaml")
_ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


class EnvoyProxy(Envoy):
    """A load-balancing Envoy; clients call ``target``, ``address`` is its admin port.

    It gets endpoints dynamically, like those of a Kubernetes Service, and retries a call at another
    gateway if a gateway was unreachable or refused it.
    """

    def __init__(self, ports: Sequence[int], *, log: Path | None = None) -> None:
        """Configure it; *ports* are those of the gateways, on loopback."""
        super().__init__(log=log)
        self._ports = list(ports)
        self._version = 0

    def use(self, ports: Sequence[int]) -> None:
        """Balance over these gateways from now on; running calls of others continue."""
        if self._folder is None:
            raise HarnessError("envoy is not running")
        self._ports = list(ports)
        self._write_endpoints(self._folder)

    def _command(self, folder: Path) -> list[str]:
        self._write_endpoints(folder)
        return super()._command(folder)

    def _write_endpoints(self, folder: Path) -> None:
        """Write the endpoints; Envoy detects files that are moved to the path."""
        self._version += 1
        endpoints = [{"endpoint": {"address": address(port)}} for port in self._ports]
        resource = {
            "@type": _ENDPOINTS,
            "cluster_name": "gateways",
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        new_file = folder / "endpoints.new"
        new_file.write_text(
            json.dumps({"version_info": str(self._version), "resources": [resource]})
        )
        new_file.rename(folder / "endpoints.json")

    def _config(self, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        config["admin"]["address"] = address(self.port)
        (listener,), (cluster,) = config["static_resources"].values()
        listener["address"] = address(self._api_port)
        source = cluster["eds_cluster_config"]["eds_config"]["path_config_source"]
        source["path"] = str(folder / "endpoints.json")
        return config

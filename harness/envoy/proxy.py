"""An Envoy that balances gRPC calls over gateways, as an ingress of a cluster does."""

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
    """The real Envoy; ``target`` is where clients call, ``address`` is its admin port.

    It is told of the gateways as Kubernetes tells of the endpoints of a Service, and tries a call
    elsewhere where a gateway could not be reached or refused it.
    """

    def __init__(self, ports: Sequence[int], *, log: Path | None = None) -> None:
        """Describe it; *ports* are those of the gateways, on loopback."""
        super().__init__(log=log)
        self._ports = list(ports)
        self._version = 0

    def use(self, ports: Sequence[int]) -> None:
        """Balance over these from now on; calls under way elsewhere go on."""
        if self._folder is None:
            raise HarnessError("envoy is not running")
        self._ports = list(ports)
        self._tell(self._folder)

    def _command(self, folder: Path) -> list[str]:
        self._tell(folder)
        return super()._command(folder)

    def _tell(self, folder: Path) -> None:
        """Write the endpoints; Envoy looks for files that are moved there."""
        self._version += 1
        endpoints = [{"endpoint": {"address": address(port)}} for port in self._ports]
        resource = {
            "@type": _ENDPOINTS,
            "cluster_name": "gateways",
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        news = folder / "endpoints.new"
        news.write_text(json.dumps({"version_info": str(self._version), "resources": [resource]}))
        news.rename(folder / "endpoints.json")

    def _config(self, folder: Path) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        config["admin"]["address"] = address(self.port)
        (listener,), (cluster,) = config["static_resources"].values()
        listener["address"] = address(self._api_port)
        source = cluster["eds_cluster_config"]["eds_config"]["path_config_source"]
        source["path"] = str(folder / "endpoints.json")
        return config

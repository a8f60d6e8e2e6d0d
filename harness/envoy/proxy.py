"""An Envoy that balances gRPC calls over gateways, as an ingress of a cluster does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.envoy.process import Envoy, address
from harness.errors import HarnessError

_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
_PROTOCOL = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


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
        return {
            "node": {"id": "samserve", "cluster": "samserve"},
            "admin": {"address": address(self.port)},
            "static_resources": {"listeners": [self._listener()], "clusters": [_cluster(folder)]},
        }

    def _listener(self) -> dict[str, Any]:
        route = {
            "cluster": "gateways",
            # The caller's own deadline counts.
            "timeout": "0s",
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,unavailable",
                "num_retries": 3,
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.retry.host"
                            ".previous_hosts.v3.PreviousHostsPredicate"
                        },
                    }
                ],
            },
        }
        manager = {
            "@type": f"{_HTTP}.HttpConnectionManager",
            "stat_prefix": "api",
            "codec_type": "HTTP2",
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "samserve",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": route}],
                    }
                ]
            },
            "http_filters": [
                {"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}
            ],
        }
        filters = [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ]
        return {"address": address(self._api_port), "filter_chains": [{"filters": filters}]}


def _cluster(folder: Path) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(folder / "endpoints.json")}}
    return {
        "name": "gateways",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": source},
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _PROTOCOL,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }

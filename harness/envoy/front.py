"""Envoy with the example configuration, on ports and with a certificate of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.envoy.process import Envoy, address

CONFIG = Path(__file__).parents[2] / "examples" / "envoy.yaml"


class EnvoyFront(Envoy):
    """Envoy with ``examples/envoy.yaml``; clients call ``target``, ``address`` is for admin."""

    def __init__(
        self,
        port: int,
        certificate: Path,
        key: Path,
        *,
        idle_timeout_s: float | None = None,
        log: Path | None = None,
    ) -> None:
        """Configure it.

        *port* is that of samserve, on loopback; the certificate and its key are PEM files.
        *idle_timeout_s* replaces the timeout of calls without progress.
        """
        super().__init__(log=log)
        self._gateway_port = port
        self._certificate, self._key = certificate, key
        self._idle_timeout_s = idle_timeout_s

    def _config(self, folder: Path) -> dict[str, Any]:
        """Return the example with the ports and files of this test, otherwise unchanged."""
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        listener = config["static_resources"]["listeners"][0]
        cluster = config["static_resources"]["clusters"][0]
        config["admin"]["address"] = address(self.port)
        listener["address"] = address(self._api_port)
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"] = address(self._gateway_port)
        tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]
        (pair,) = tls["common_tls_context"]["tls_certificates"]
        pair["certificate_chain"]["filename"] = str(self._certificate.absolute())
        pair["private_key"]["filename"] = str(self._key.absolute())
        if self._idle_timeout_s is not None:
            (manager,) = listener["filter_chains"][0]["filters"]
            manager["typed_config"]["stream_idle_timeout"] = f"{self._idle_timeout_s}s"
        return config

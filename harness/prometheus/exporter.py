"""The exporter with the metrics of one Valkey or Redis node for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.program import Program
from harness.prometheus.programs import find


class RedisExporter(Program):
    """redis_exporter for one node; Prometheus scrapes its ``address``."""

    _name: ClassVar[str] = "redis_exporter"
    _ready_path: ClassVar[str] = "/health"

    def __init__(self, redis_address: str, *, port: int = 0, log: Path | None = None) -> None:
        """Configure the exporter; ``redis_address`` is ``host:port``, without a password."""
        super().__init__(port=port, log=log)
        self._redis_address = redis_address

    def _command(self, folder: Path) -> list[str]:
        return [
            find(self._name),
            f"--redis.addr=redis://{self._redis_address}",
            f"--web.listen-address={self.address}",
        ]

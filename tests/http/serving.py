"""A service with the HTTP listener."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from samserve.app import Running, running
from samserve.engines.base import Engine
from samserve.engines.fake import FakeEngine
from samserve.settings import Settings

from tests.conftest import settings_with


def settings_of(**sections: dict[str, Any]) -> Settings:
    """Return settings with the HTTP listener on a free port."""
    http = {"enabled": True, "port": 0, **sections.pop("http", {})}
    return settings_with(http=http, **sections)


def http_service(
    engine: Engine | None = None, **sections: dict[str, Any]
) -> AbstractAsyncContextManager[Running]:
    """Run the service, by default with a fake engine."""
    return running(settings_of(**sections), engine=engine or FakeEngine())

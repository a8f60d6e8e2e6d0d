"""A server with the web page, and the page's address."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from samserve.app import Running, default_repository, running

from tests.conftest import settings_with
from tests.examples.programs import ROOT
from tests.metric_values import total
from tests.secret_leaks import secret

MODEL = "sam_tiny"
OTHER_MODEL = "sam_tiny_again"
"""The default model under another name, which the page can choose."""


def page_folder() -> Path:
    """Return the folder of the built page; the variable `TEST_PAGE_FOLDER` names another."""
    folder = Path(os.environ.get("TEST_PAGE_FOLDER") or ROOT / "web" / "dist")
    assert (folder / "index.html").exists(), f"{folder} has no page: run `make web/dist/index.html`"
    return folder


def two_models(folder: Path) -> Path:
    """Write a repository with the default model under two names, and return it."""
    for source in default_repository().iterdir():
        for name in (MODEL, OTHER_MODEL):
            target = folder / source.name.replace(MODEL, name) / "1"
            target.mkdir(parents=True, exist_ok=True)
            config = (source / "config.pbtxt").read_text()
            (target.parent / "config.pbtxt").write_text(config.replace(MODEL, name))
            os.link(source / "1" / "model.onnx", target / "model.onnx")
    return folder


@asynccontextmanager
async def web_service(**sections: dict[str, Any]) -> AsyncIterator[Running]:
    """Run the service with the default model and the web page; *sections* change its settings."""
    http = {
        "enabled": True,
        "port": 0,
        "web_page": True,
        "web_page_folder": page_folder(),
        **sections.pop("http", {}),
    }
    files = {"get_enabled": True, **sections.pop("embedding_files", {})}
    engine = {"kind": "onnx", **sections.pop("engine", {})}
    settings = settings_with(http=http, engine=engine, embedding_files=files, **sections)
    async with running(settings) as service:
        yield service


def token_of(service: Running) -> str:
    """Return a new token for one session; earlier ones are no longer valid."""
    assert service.page is not None
    assert service.page.sessions is not None
    return secret(service.page.sessions.issue())


class Address(str):
    """An address with a token, which the texts of failed tests do not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


def address_of(service: Running) -> Address:
    """Return an address as `samserve serve` prints it, with a new token."""
    return Address(f"{service.http_address}/#token={token_of(service)}")


def in_flight(service: Running, method: str) -> float:
    return total(service.metrics.registry, "samserve_inflight_requests", grpc_method=method)


def handled(service: Running, method: str, **labels: str) -> float:
    """Count the calls of a method that have ended; with ``grpc_code``, of this code."""
    registry = service.metrics.registry
    return total(registry, "grpc_server_handled_total", grpc_method=method, **labels)


def started(service: Running, method: str) -> float:
    """Count the calls of a method that have begun."""
    registry = service.metrics.registry
    return total(registry, "grpc_server_started_total", grpc_method=method)

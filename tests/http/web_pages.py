"""A small page for the HTTP listener, and requests of its browser."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from samserve.app import Running
from samserve.v1 import samserve_pb2 as pb

from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, Response, connected
from tests.secret_leaks import secret

LIST, SESSION = SERVICE + "ListModels", "/web/session"
LIST_MODELS = pb.ListModelsRequest()
FILES = {
    "index.html": b"<!doctype html><title>A page</title>",
    "favicon.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "robots.txt": b"none",
    "data": b"of no known type",
    "assets/main-1a2b.js": b"// " + b"a script " * 1000,
    "assets/worker-3c4d.mjs": b"// a worker",
    "assets/main-1a2b.js.map": b"{}",
    "assets/main-5e6f.css": b"p { margin: 0 }",
    "assets/run-7a8b.wasm": b"\0asm" + bytes(range(256)) * 4096,
    "samples/coins.jpg": b"\xff\xd8\xff",
    "samples/coins.PNG": b"\x89PNG",
    "samples/list.json": b"[]",
}


def write_page(folder: Path) -> Path:
    """Write the files, and return their folder."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def page_service(folder: Path, **sections: dict[str, Any]) -> AbstractAsyncContextManager[Running]:
    """Run a service with the page in a folder."""
    http = {"web_page": True, "web_page_folder": folder, **sections.pop("http", {})}
    return http_service(http=http, **sections)


async def send(
    service: Running,
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    **options: Any,
) -> Response:
    """Send a request, by default a GET, and return its response."""
    async with connected(service.http_address) as wire:
        return await wire.request(path, body, headers, **{"method": "GET", **options})


async def exchange(
    service: Running, token: str, *headers: tuple[str, str], **options: Any
) -> Response:
    """Send a token as the page does."""
    body = json.dumps({"token": token}).encode()
    return await send(service, SESSION, [JSON, *headers], body, **{"method": "POST", **options})


async def session_of(service: Running) -> tuple[str, str]:
    """Begin a session, and return the header of its calls."""
    assert service.page is not None
    assert service.page.sessions is not None
    response = await exchange(service, secret(service.page.sessions.issue()))
    return "authorization", f"Bearer {credential_of(response)}"


def credential_of(response: Response) -> str:
    assert response.status == 200, response.body
    return secret(str(json.loads(response.body)["credential"]))


def token_of(line: str) -> str:
    """Return the token in a line with the page's address."""
    found = re.search(r" https?://\S+/#token=([A-Za-z0-9_-]{43})$", line)
    assert found, "there is no address with a token"
    return secret(found[1])


def reason(response: Response) -> str:
    """Return the reason of an error."""
    return str(json.loads(response.body)["details"][0]["debug"]["reason"])

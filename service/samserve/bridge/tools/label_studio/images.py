"""The images of Label Studio's tasks: from its own server with its token, or from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urljoin, urlsplit

from samserve.bridge.fetching import Fetcher, TrustedOrigin
from samserve.bridge.segmenter import ImageSource
from samserve.bridge.tools.label_studio.server import LabelStudio
from samserve.bridge.tools.label_studio.settings import LabelStudioSettings
from samserve.errors import InvalidRequest

_FIELD = "tasks.data"
# Paths of images; a task must not choose what else is requested with the token.
_IMAGE_PATHS = ("data/", "storage-data/", "static/", "tasks/", "projects/")
_STORAGE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FETCHED = ("http://", "https://", "data:")


class TaskImages:
    """Finds the images of tasks; without *server* only those that have a URL of their own."""

    def __init__(self, fetcher: Fetcher, server: LabelStudio | None) -> None:
        self._fetcher = fetcher
        self._server = server

    @classmethod
    def of(
        cls,
        fetcher: Fetcher,
        settings: LabelStudioSettings,
        stack: AsyncExitStack,
        ca_file: Path | None = None,
    ) -> Self:
        """Return the images that the settings allow; *stack* closes the connections.

        *ca_file* is that of the fetcher.
        """
        if not settings.url:
            return cls(fetcher, None)
        server = LabelStudio(settings.url, settings.token_file, ca_file)
        stack.push_async_exit(server)
        return cls(fetcher, server)

    def source(self, task: Mapping[str, Any], key: str, item: int | None = None) -> ImageSource:
        """Return the image in the field *key* of a task; *item* is its number if it has several.

        Raises `InvalidRequest` if there is none, or if it is on a server that is not configured.
        """
        url = self._url(task, _value(task, key, item))

        async def load() -> bytes:
            return (await self._fetcher.fetch(url, await self._trusted(url))).body

        return ImageSource(f"label_studio:{url}", load)

    def _url(self, task: Mapping[str, Any], value: str) -> str:
        if value.lower().startswith(_FETCHED):
            return value
        if self._server is None:
            raise InvalidRequest(
                _FIELD, "the image is stored by Label Studio, and label_studio.url is not set"
            )
        if _STORAGE.match(value):
            # Only Label Studio can sign URLs of its cloud storage.
            encoded = base64.urlsafe_b64encode(value.encode()).decode()
            return f"{self._server.url}tasks/{_number(task)}/resolve/?fileuri={encoded}"
        try:
            return urljoin(self._server.url, value)
        except ValueError:
            raise InvalidRequest(_FIELD, "the image has no valid URL") from None

    async def _trusted(self, url: str) -> TrustedOrigin | None:
        server = self._server
        if server is None or not _is_image_of(url, server.url):
            return None
        return TrustedOrigin(server.url, await server.headers())


def _is_image_of(url: str, server: str) -> bool:
    """Return whether a URL is that of an image on a server, after which the token may be sent."""
    root = urlsplit(server)
    try:
        parts = urlsplit(url)
        same = (parts.scheme.lower(), parts.hostname, parts.port) == (
            *(root.scheme.lower(), root.hostname, root.port),
        )
    except ValueError:
        return False
    path = unquote(parts.path)
    inside = path.startswith(root.path) and path[len(root.path) :].startswith(_IMAGE_PATHS)
    return same and inside and ".." not in path and "\\" not in path


def _value(task: Mapping[str, Any], key: str, item: int | None) -> str:
    data = task.get("data")
    value: Any = data
    if isinstance(data, Mapping):
        value = data[key] if key in data else _nested(data, key)
    if isinstance(value, list):
        index = item or 0
        value = value[index] if 0 <= index < len(value) else None
    if not isinstance(value, str) or not value:
        raise InvalidRequest(_FIELD, f"has no image in {key[:100]!r}")
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        # JSON may have halves of characters, which no URL has.
        raise InvalidRequest(_FIELD, "the image has no valid URL")
    return value


def _nested(data: Mapping[str, Any], key: str) -> Any:
    found: Any = data
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _number(task: Mapping[str, Any]) -> int:
    number = task.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequest("tasks.id", "is not a number")
    return number

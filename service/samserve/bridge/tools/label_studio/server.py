"""Label Studio's API, as far as the bridge calls it, with either kind of its access tokens.

A personal access token is a JWT that is exchanged for a token of five minutes; a legacy token is
sent as it is.  Source: label_studio/jwt_auth/auth.py, views.py; label_studio_sdk/tokens/client_ext.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2

from samserve.errors import InvalidRequest, Misconfigured, SamserveError, Unavailable

Json = dict[str, Any]

TASKS_PER_PAGE = 100
_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_RENEW_BEFORE_S = 60.0
_DEFAULT_LIFETIME_S = 120.0
_JWT_PARTS = 3
_MAX_SHOWN = 300
_NOT_FOUND, _UNAUTHORIZED, _FORBIDDEN = 404, 401, 403

_now = time.monotonic


class LabelStudioUnavailable(Unavailable):
    """Label Studio is not reachable, failed, or is not what the URL leads to."""

    reason = "LABEL_STUDIO_UNAVAILABLE"


class AccessToken:
    """A token of Label Studio in a file, which is read again whenever it is needed."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._exchanged, self._refreshed_from = "", ""
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def headers(self, http: httpx2.AsyncClient) -> dict[str, str]:
        """Return the header with a valid token, or no header without a file.

        Raises `Misconfigured`, `LabelStudioUnavailable`.
        """
        if self._path is None:
            return {}
        token = await asyncio.to_thread(_content, self._path)
        if token.count(".") != _JWT_PARTS - 1:
            return {"Authorization": f"Token {token}"}
        async with self._lock:
            if token != self._refreshed_from or _now() >= self._renew_at:
                await self._exchange(http, token)
        return {"Authorization": f"Bearer {self._exchanged}"}

    def forget(self) -> None:
        """Exchange the token again before its next use."""
        self._refreshed_from = ""

    async def _exchange(self, http: httpx2.AsyncClient, token: str) -> None:
        response = await _send(http, "POST", "api/token/refresh/", json={"refresh": token})
        access = response.get("access") if isinstance(response, dict) else None
        if not isinstance(access, str):
            raise LabelStudioUnavailable("Label Studio returned no access token")
        self._exchanged, self._refreshed_from = access, token
        self._renew_at = _now() + max(_lifetime_s(access) - _RENEW_BEFORE_S, 1.0)


class LabelStudio:
    """One Label Studio; used as ``async with``.

    Methods raise `Misconfigured` for a token that is not accepted, `InvalidRequest` for a request
    that is not, and `LabelStudioUnavailable` if it does not answer.  *ca_file* has certificates of
    authorities that are trusted in addition to those of the system; it must be usable.
    """

    def __init__(
        self, url: str, token_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        self.url = url.rstrip("/") + "/"
        self._token = AccessToken(token_file)
        tls = ssl.create_default_context()
        if ca_file is not None:
            tls.load_verify_locations(ca_file)
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            verify=tls,
            timeout=httpx2.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def headers(self) -> dict[str, str]:
        """Return the headers that authorize a request; empty without a token."""
        return await self._token.headers(self._http)

    async def project(self, number: int) -> Json:
        """Return a project; ``label_config`` is among its fields."""
        project = await self._call("GET", f"api/projects/{number}/")
        if not isinstance(project, dict) or not isinstance(project.get("label_config"), str):
            raise _unexpected()
        return project

    async def tasks(self, project: int) -> AsyncIterator[Json]:
        """Yield the tasks of a project, each with ``id``, ``data`` and ``model_versions``.

        The last are those of its predictions.
        """
        page, seen, total = 1, 0, 1
        while seen < total:
            query = {
                "project": project,
                "page": page,
                "page_size": TASKS_PER_PAGE,
                # Only with `all` are the versions filled in, and all else is left out.
                "fields": "all",
                "include": "id,data,predictions_model_versions",
            }
            found = await self._call("GET", "api/tasks/", params=query)
            if not isinstance(found, dict) or not isinstance(found.get("tasks"), list):
                raise _unexpected()
            tasks, total = found["tasks"], int(found.get("total", 0))
            if not tasks:
                return
            for task in tasks:
                versions = task.get("predictions_model_versions") or ""
                yield {**task, "model_versions": versions.split(",")}
            seen, page = seen + len(tasks), page + 1

    async def import_predictions(self, project: int, predictions: Sequence[Json]) -> None:
        """Add predictions, each with ``task``, ``result``, ``score`` and ``model_version``."""
        path = f"api/projects/{project}/import/predictions"
        await self._call("POST", path, json=list(predictions))

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            return await _send(self._http, method, path, headers=await self.headers(), **options)
        except Misconfigured:
            # A token may be revoked before it ends.
            self._token.forget()
            return await _send(self._http, method, path, headers=await self.headers(), **options)


async def _send(
    http: httpx2.AsyncClient,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """Send a request and return the JSON of its response; large bodies are parsed in a thread."""
    try:
        response = await http.request(method, path, headers=headers, **options)
    except httpx2.TransportError as error:
        raise LabelStudioUnavailable(
            f"Label Studio at {http.base_url} is not reachable: {type(error).__name__}"
        ) from error
    if response.is_success:
        try:
            return await asyncio.to_thread(response.json)
        except ValueError:
            raise _unexpected() from None
    raise _error(response)


def _error(response: httpx2.Response) -> SamserveError:
    status = response.status_code
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return Misconfigured(
            f"Label Studio does not accept the token: {_detail(response)}; create a personal "
            "access token in its account settings"
        )
    if status == _NOT_FOUND:
        return InvalidRequest("project", "Label Studio has none of this number for the token")
    if response.is_client_error:
        return InvalidRequest("request", f"Label Studio answered {status}: {_detail(response)}")
    return LabelStudioUnavailable(f"Label Studio answered with status {status}")


def _detail(response: httpx2.Response) -> str:
    try:
        found = response.json()
    except ValueError:
        return f"status {response.status_code}"
    found = found.get("validation_errors") or found.get("detail") or found
    return (found if isinstance(found, str) else json.dumps(found))[:_MAX_SHOWN]


def _unexpected() -> LabelStudioUnavailable:
    return LabelStudioUnavailable(
        "Label Studio answered in a form that is not known; is its URL right?"
    )


def _content(path: Path) -> str:
    try:
        token = path.read_text("utf-8", "replace").strip()
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror or 'cannot be read'}") from None
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise Misconfigured(f"{path}: contains no access token of Label Studio")
    return token


def _lifetime_s(token: str) -> float:
    """Return the lifetime of a JWT by the clock that issued it, or a short one if it has none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - float(claims["iat"])
    except (ValueError, KeyError, TypeError, IndexError):
        return _DEFAULT_LIFETIME_S

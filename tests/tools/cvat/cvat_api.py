"""The part of CVAT's server API that `cvat-cli` calls, for one task whose frames a test gives.

The routes and the fields are those that `cvat-cli` and `cvat-sdk` 2.80 request and require.  It is
no CVAT server: it shows what the real client code sends, not what CVAT does with it.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TASK, FUNCTION = 7, 3
TOKEN = "cvat-token"
LABEL = {
    "id": 41,
    "name": "coin",
    "type": "any",
    "color": "#fff",
    "attributes": [],
    "sublabels": [],
}
CREATED = "2026-01-01T00:00:00Z"
QUEUE = f"/api/functions/queues/function:{FUNCTION}/requests"
ABOUT = {"name": "CVAT", "description": "", "version": "2.80.0", "subtitle": "", "logo_url": ""}

Assignment = dict[str, Any]


@dataclass
class CvatApi:
    """A task with *frames*, PNG or JPEG files, and one function with a queue of requests.

    The function is the one that ``create-native`` posts.  *before* is called with the parameters of
    a request when an agent acquires it.
    """

    frames: list[bytes]
    label_type: str = "any"
    requests: list[Assignment] = field(default_factory=list)
    before: Callable[[Assignment], object] = lambda params: None
    function: dict[str, Any] = field(default_factory=dict)
    completed: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    uploaded: list[dict[str, Any]] = field(default_factory=list)
    frame_downloads: int = 0
    unknown: list[str] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def serving(self) -> Iterator[CvatApi]:
        """Serve on loopback while the block runs."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                size = int(self.headers.get("Content-Length", "0"))
                body = json.loads(self.rfile.read(size) or b"null") if size else None
                status, kind, answer = api.answer(self.command, self.path, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self
            server.shutdown()

    def answer(self, method: str, target: str, body: Any) -> tuple[int, str, bytes]:
        """Return status, content type and body of a response."""
        url = urlsplit(unquote(target))
        path = url.path.rstrip("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if path == f"/api/tasks/{TASK}/data":
            return self._data(query)
        found = self._json(method, path, body)
        if found is None:
            self.unknown.append(f"{method} {path}")
            return 404, "application/json", b'{"detail": "Not found."}'
        return 200, "application/json", json.dumps(found).encode()

    def _json(self, method: str, path: str, body: Any) -> Any:
        """Return the JSON of a route, None if it is not known."""
        routes: dict[str, Callable[[], Any]] = {
            "GET /api/server/about": lambda: ABOUT,
            "POST /api/functions": lambda: self._create(body),
            f"GET /api/functions/{FUNCTION}": lambda: self.function,
            f"POST {QUEUE}/acquire": lambda: {"ar_assignment": self._acquire(body)},
            f"GET /api/tasks/{TASK}": self._task,
            "GET /api/labels": self._labels,
            f"GET /api/tasks/{TASK}/data/meta": self._meta,
            f"PATCH /api/tasks/{TASK}/annotations": lambda: self._annotate(body),
        }
        route = routes.get(f"{method} {path}")
        if route is not None:
            return route()
        queue, number, verb = path.rsplit("/", 2)
        if (method, queue) == ("POST", QUEUE) and verb in ("complete", "fail"):
            if verb == "complete":
                self.completed[number] = body
            else:
                self.failed[number] = body["exc_info"]
            return {}
        return None

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.function = self._with_defaults(body)
        return self.function

    def _annotate(self, body: dict[str, Any]) -> dict[str, Any]:
        self.uploaded.append(body)
        return {"version": 1, "tags": [], "shapes": [], "tracks": []}

    def _labels(self) -> dict[str, Any]:
        label = {**LABEL, "type": self.label_type}
        return {"count": 1, "next": None, "previous": None, "results": [label]}

    def _with_defaults(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a function as the server stores it."""
        if body["kind"] == "detector":
            return {"id": FUNCTION, **body}
        boxes = {"startswith_box": False, "startswith_box_optional": False}
        return {"id": FUNCTION, "min_neg_points": -1, **boxes, **body}

    def _acquire(self, body: dict[str, Any]) -> dict[str, Any] | None:
        batch = body["request_category"] == "batch"
        if not self.requests or batch != self.requests[0]["type"].startswith("annotate_task"):
            return None
        params = self.requests.pop(0)
        self.before(params)
        return {"ar_id": params.pop("id"), "ar_params": params}

    def _task(self) -> dict[str, Any]:
        return {
            "id": TASK,
            "name": "coins",
            "size": len(self.frames),
            "data_chunk_size": 2,
            "data_original_chunk_type": "imageset",
            "created_date": CREATED,
            "updated_date": CREATED,
            "organization": None,
            "jobs": {"count": 1, "completed": 0, "validation": 0, "url": "http://x/"},
            "labels": {"url": "http://x/"},
        }

    def _meta(self) -> dict[str, Any]:
        frames = [
            {"width": 1, "height": 1, "name": f"{index}.png", "related_files": 0}
            for index in range(len(self.frames))
        ]
        return {
            "chunks_updated_date": CREATED,
            "chunk_size": 2,
            "size": len(self.frames),
            "image_quality": 100,
            "start_frame": 0,
            "stop_frame": len(self.frames) - 1,
            "frame_filter": "",
            "frames": frames,
            "deleted_frames": [],
            "included_frames": None,
        }

    def _data(self, query: dict[str, str]) -> tuple[int, str, bytes]:
        number = int(query["number"])
        if query["type"] == "frame":
            self.frame_downloads += 1
            return 200, "image/png", self.frames[number]
        chunk = io.BytesIO()
        with zipfile.ZipFile(chunk, "w") as archive:
            for index, frame in enumerate(self.frames[2 * number : 2 * number + 2]):
                archive.writestr(f"{index:06}.png", frame)
        return 200, "application/zip", chunk.getvalue()

"""Requests recorded from the real Label Studio, its run lengths decoded, and a stub of its server.

`tests/tools/label_studio/recording.py` records the requests.
"""

from __future__ import annotations

import base64
import copy
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from tests.secret_leaks import secret

RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("label_studio_requests.json").read_text()
)


def recorded(name: str) -> Any:
    """Return the body of a recorded request, which may be changed."""
    return copy.deepcopy(RECORDED[name]["body"])


def decoded(rle: list[int], height: int, width: int) -> np.ndarray:
    """Decode run lengths of Label Studio to uint8 ``[h, w, 4]``, as its browser page does."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    values = np.zeros(read(32), np.uint8)
    word = read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    index = 0
    while index < values.size:
        repeated = read(1)
        end = index + 1 + read(widths[read(2)])
        while index < end:
            count = end - index if repeated else 1
            values[index : index + count] = read(word)
            index += count
    assert index == values.size
    assert len(bits) - position <= 8
    return values.reshape(height, width, 4)


def mask_of(region: Mapping[str, Any]) -> np.ndarray:
    """Return the mask of a brush stroke, bool ``[h, w]``; all channels must be equal."""
    size = region["original_height"], region["original_width"]
    channels = decoded(region["value"]["rle"], *size)
    assert set(np.unique(channels)) <= {0, 255}
    assert (channels == channels[:, :, :1]).all()
    return channels[:, :, 3] > 0


class StubServer(ThreadingHTTPServer):
    """Uploaded images, tasks and predictions of one project, for one token of either kind."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        claims = base64.urlsafe_b64encode(b'{"iat": 1000, "exp": 1300}').decode().rstrip("=")
        self.legacy = secret("legacy-token-of-label-studio")
        self.personal = secret(f"header.{claims}.personal-signature")
        self.access = secret(f"header.{claims}.access-signature")
        self.label_config = ""
        self.images: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.tasks: list[dict[str, Any]] = []
        self.accepts_predictions = True
        self.requests: list[tuple[str, str, str]] = []
        """Method, path with query, and authorization of every request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self, beginning: str) -> list[str]:
        """Return the requested paths with this beginning."""
        return [path for _, path, _ in self.requests if path.startswith(beginning)]

    def add_tasks(self, image: bytes, count: int) -> None:
        """Add tasks with images of their own."""
        for number in range(len(self.tasks) + 1, len(self.tasks) + count + 1):
            path = f"/data/upload/1/{number}.png"
            self.images[path] = image
            self.tasks.append({"id": number, "data": {"image": path}, "predictions": []})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - a name of the base class
        pass

    def do_GET(self) -> None:
        parts, server = urlsplit(self.path), self.server
        if not self._authorized():
            return
        if parts.path in server.images:
            self._send(200, server.images[parts.path], "image/png")
        elif parts.path in server.redirects:
            self.send_response(303)
            self.send_header("location", server.redirects[parts.path])
            self.send_header("content-length", "0")
            self.end_headers()
        elif parts.path == "/api/projects/1/":
            self._json({"id": 1, "label_config": server.label_config})
        elif parts.path == "/api/tasks/":
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            page, size = int(query["page"]), int(query["page_size"])
            assert query["include"] == "id,data,predictions_model_versions"
            tasks = [_listed(task) for task in server.tasks[(page - 1) * size : page * size]]
            self._json({"tasks": tasks, "total": len(server.tasks)})
        else:
            self._json({"detail": "Not found."}, 404)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/token/refresh/":
            self._record()
            known = body == {"refresh": server.personal}
            self._json(
                {"access": server.access} if known else {"detail": "no"}, 200 if known else 401
            )
        elif self._authorized():
            assert self.path == "/api/projects/1/import/predictions"
            if not server.accepts_predictions:
                self._json({"detail": "the database is full"}, 503)
                return
            for each in body:
                server.tasks[each["task"] - 1]["predictions"].append(each)
            self._json({"created": len(body)}, 201)

    def _record(self) -> None:
        found = self.command, self.path, self.headers.get("authorization", "")
        self.server.requests.append(found)

    def _authorized(self) -> bool:
        self._record()
        accepted = (f"Token {self.server.legacy}", f"Bearer {self.server.access}")
        if self.headers.get("authorization") in accepted:
            return True
        self._json({"detail": "Invalid token."}, 401)
        return False

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _listed(task: dict[str, Any]) -> dict[str, Any]:
    versions = ",".join(each["model_version"] for each in task["predictions"])
    return {"id": task["id"], "data": task["data"], "predictions_model_versions": versions}


@contextmanager
def stub_server() -> Iterator[StubServer]:
    """Run the stub in a thread."""
    with StubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

"""Records what the real Label Studio sends to an ML backend, for the contract tests.

``python -m tests.tools.label_studio.recording`` writes `REQUESTS`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.label_studio import LabelStudioServer
from tests import sample_images
from tests.support.waiting import until_sync
from tests.tools.label_studio.projects import CONFIG, box, point

REQUESTS = Path(__file__).parents[2] / "bridge" / "label_studio_requests.json"
_RESPONSES = {
    "health": {"status": "UP", "model_class": "recorder"},
    "setup": {"model_version": "recorded"},
    "predict": {"results": [{"result": []}]},
    "versions": {"versions": []},
}
_SECRETS = ("access_token", "hostname")


class _Backend(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - a name of the base class
        pass

    def _answer(self, body: bytes) -> None:
        name = self.path.rpartition("/")[2]
        found = {
            "method": self.command,
            "path": self.path,
            "authorization": self.headers.get("authorization", "").partition(" ")[0],
            "body": json.loads(body) if body else None,
        }
        assert isinstance(self.server, _Recorder)
        self.server.requests.append(found)
        data = json.dumps(_RESPONSES.get(name, {})).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Recorder(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Backend)
        self.requests: list[dict[str, Any]] = []

    def take(self, name: str) -> dict[str, Any]:
        """Return the last request of a route, and forget all."""
        found = [each for each in self.requests if each["path"].endswith(name)][-1]
        self.requests.clear()
        return found


@contextmanager
def _recording() -> Iterator[_Recorder]:
    with _Recorder() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def record() -> dict[str, Any]:
    """Return the requests by what a person did, without tokens and addresses."""
    found: dict[str, Any] = {}
    with _recording() as backend, LabelStudioServer() as server:
        project = server.create_project("recorded", CONFIG)
        (task,) = server.upload(project, {"image.png": sample_images.png(48, 64)})
        url = f"http://127.0.0.1:{backend.server_port}/label-studio"
        number = server.connect(project, url, "password")
        found["setup"] = backend.take("setup")
        server.call("GET", "/api/ml/", params={"project": project})
        found["health"] = backend.take("health")
        for name, context in {
            "removed_point": [],
            "point": [point("first", 25, 40)],
            "two_points": [point("first", 25, 40), point("second", 50, 60, positive=False)],
            "outline": [point("first", 25, 40, label="Outline")],
            "box": [box("first", 10, 20, 50, 60)],
        }.items():
            server.click(number, task, context)
            found[name] = backend.take("predict")
        server.call("POST", f"/api/ml/{number}/predict/test", params={"random": "true"})
        found["test_request"] = backend.take("predict")
        chosen = {"selectedItems": {"all": True, "excluded": []}}
        query = {"id": "retrieve_tasks_predictions", "project": project}
        server.call("POST", "/api/dm/actions", params=query, json=chosen)
        found["retrieve_predictions"] = backend.take("predict")
        server.call("GET", f"/api/ml/{number}/versions")
        found["versions"] = backend.take("versions")
        server.call("POST", f"/api/ml/{number}/train")
        found["train"] = backend.take("webhook")
        annotation = {"result": [], "was_cancelled": False}
        server.call("POST", f"/api/tasks/{task}/annotations/", json=annotation)
        found["webhook"] = _eventually(backend, "webhook")
    return {name: _without_secrets(each) for name, each in found.items()}


def _without_secrets(request: dict[str, Any]) -> dict[str, Any]:
    body = request["body"]
    if body is None:
        return request
    if "action" in body:
        # The bridge reads nothing of a webhook, which describes the whole project.
        return {**request, "body": {"action": body["action"]}}
    return {**request, "body": body | {name: "" for name in _SECRETS if name in body}}


def _eventually(backend: _Recorder, name: str) -> dict[str, Any]:
    until_sync(lambda: any(each["path"].endswith(name) for each in backend.requests))
    return backend.take(name)


if __name__ == "__main__":
    REQUESTS.write_text(json.dumps(record(), indent=1) + "\n")

"""A real Label Studio on loopback, with SQLite in a temporary folder, as a child process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx2

from harness.program import HOST, Program

PROGRAM = Path(__file__).parents[1] / ".venv-label-studio" / "bin" / "label-studio"
USER = "annotator@example.com"
_TIMEOUT_S = 120.0
_OFF = ("SENTRY_DSN", "FRONTEND_SENTRY_DSN")


class LabelStudioServer(Program):
    """Label Studio with one user, ready once its database is made; about half a minute."""

    _name: ClassVar[str] = "label-studio"
    _ready_path: ClassVar[str] = "/health"
    _start_timeout_s = 300.0

    def __init__(self, *, port: int = 0, log: Path | None = None) -> None:
        """Configure the server, without starting it; a port of 0 chooses a free one."""
        super().__init__(port=port, log=log)
        self.password = secrets.token_urlsafe(12)
        self.legacy_token = secrets.token_hex(20)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Call the API as the user, and return the JSON of the response."""
        headers = {"Authorization": f"Token {self.legacy_token}"}
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=_TIMEOUT_S) as http:
            response = http.request(method, path, headers=headers, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def personal_access_token(self) -> str:
        """Create the user's personal access token."""
        token: str = self.call("POST", "/api/token/")["token"]
        return token

    def create_project(self, title: str, label_config: str) -> int:
        """Create a project and return its number."""
        body = {"title": title, "label_config": label_config}
        number: int = self.call("POST", "/api/projects/", json=body)["id"]
        return number

    def upload(self, project: int, images: Mapping[str, bytes]) -> list[int]:
        """Upload images by file name, and return the numbers of their tasks, in order."""
        for name, data in images.items():
            self.call("POST", f"/api/projects/{project}/import", files={name: (name, data)})
        return [task["id"] for task in self.tasks(project)][-len(images) :]

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """Return the tasks of a project, with their annotations and predictions."""
        query = {"project": project, "page_size": 1000, "fields": "all"}
        tasks: list[dict[str, Any]] = self.call("GET", "/api/tasks/", params=query)["tasks"]
        return tasks

    def connect(self, project: int, url: str, password: str = "") -> int:
        """Connect an interactive ML backend to a project, and return its number."""
        body: dict[str, Any] = {
            "project": project,
            "url": url,
            "title": "samserve",
            "is_interactive": True,
        }
        if password:
            login = {"basic_auth_user": "samserve", "basic_auth_pass": password}
            body |= {"auth_method": "BASIC_AUTH", **login}
        number: int = self.call("POST", "/api/ml/", json=body)["id"]
        return number

    def is_connected(self, backend: int) -> bool:
        """Return whether an ML backend is connected, which Label Studio asks it for."""
        project = self.call("GET", f"/api/ml/{backend}")["project"]
        found: list[dict[str, Any]] = self.call("GET", "/api/ml/", params={"project": project})
        return any(
            each["id"] == backend and each["readable_state"] == "Connected" for each in found
        )

    def click(self, backend: int, task: int, result: Sequence[Mapping[str, Any]]) -> Any:
        """Ask for the masks of regions, as the interface does."""
        body = {"task": task, "context": {"result": list(result)}}
        return self.call("POST", f"/api/ml/{backend}/interactive-annotating", json=body)

    def export(self, project: int, form: str) -> bytes:
        """Return the file of an export in a format such as ``COCO``."""
        headers = {"Authorization": f"Token {self.legacy_token}"}
        query = {"exportType": form, "download_resources": "false"}
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=_TIMEOUT_S) as http:
            response = http.get(f"/api/projects/{project}/export", headers=headers, params=query)
        assert response.is_success, response.text
        return response.content

    def _command(self, folder: Path) -> list[str]:
        data = folder / "data"
        self._env = {
            # Its own variables, such as HOST or PORT, have names that others use too.
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LABEL_STUDIO_BASE_DATA_DIR": str(data),
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            # The bridge is on loopback, and so is the webhook that Label Studio makes for it.
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
            **dict.fromkeys(_OFF, ""),
        }
        return [
            *(str(PROGRAM), "start", "--no-browser", "--data-dir", str(data)),
            *("--internal-host", HOST, "--port", str(self.port)),
            *("--username", USER, "--password", self.password),
            *("--user-token", self.legacy_token, "--enable-legacy-api-token"),
        ]

"""Puts the web page into the wheel, as `samserve/web_page`; builds it with npm if necessary.

A page in `web/dist` that is newer than all of its inputs is used as it is. Otherwise npm builds
it, if Node.js is on the PATH. A wheel without the page is complete but for the page, and its server
says so at the page's address; `REQUIRE_WEB_PAGE=1` makes a missing page an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODE = 22
# Files and folders that the page is built from; the Makefile has the same list.
INPUTS = (
    *("web/src", "web/public", "web/index.html", "web/package.json", "web/vite.config.ts"),
    *("web/tsconfig.json", "web/buf.gen.yaml", "proto", "examples/shared/google_rpc.proto"),
    "service/samserve/export/samples",
)
# Code that the build writes from `proto`.
GENERATED = "web/src/gen"
INSTALL = ("install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")


class Unavailable(Exception):
    """The page cannot be built here; the message is the reason."""


class WebPage(BuildHookInterface[Any]):
    """Adds the page to the wheel, or reports why it is missing."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the page; *version* is the kind of build, such as ``standard``."""
        # An editable installation serves `web/dist`.
        if version == "editable":
            return
        try:
            page = page_of(Path(self.root))
        except Unavailable as error:
            if os.environ.get("REQUIRE_WEB_PAGE") == "1":
                raise
            self.app.display_warning(
                f"This wheel is built without the web page: {error}. All else works. "
                "In a clone, `make wheel` builds it with the page."
            )
        else:
            build_data["force_include"][str(page)] = "samserve/web_page"


def page_of(root: Path) -> Path:
    """Return the folder of the built page, and build it unless it is up to date."""
    page = root / "web" / "dist"
    if not is_current(root, page / "index.html"):
        build(root / "web")
    return page


def is_current(root: Path, index: Path) -> bool:
    """Return whether no input of the page has changed since *index* was written.

    As for make, the times of the files decide. Where the sources are missing, as in the stage of
    the Dockerfile that has no Node.js, the page is used as it is.
    """
    if not index.is_file():
        return False
    if not (root / "web" / "src").is_dir():
        return True
    built = index.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= built for path in inputs(root))


def inputs(root: Path) -> Iterator[Path]:
    """Yield every file that the page is built from."""
    for name in INPUTS:
        path = root / name
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and not file.is_relative_to(root / GENERATED):
                yield file


def build(folder: Path) -> None:
    """Build the page with npm, in *folder* `web`."""
    if not (folder / "src").is_dir():
        raise Unavailable("its sources are missing")
    npm = shutil.which("npm")
    if npm is None or node_version() < OLDEST_NODE:
        raise Unavailable(f"Node.js {OLDEST_NODE} or newer and npm are not on the PATH")
    # One retry: without a network, npm would otherwise wait for minutes.
    run(folder, npm, *INSTALL, "--fetch-retries=1")
    run(folder, npm, "run", "--silent", "build")


def node_version() -> int:
    """Return the major version of the Node.js on the PATH, 0 if there is none."""
    node = shutil.which("node")
    if node is None:
        return 0
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    major = done.stdout.strip().removeprefix("v").partition(".")[0]
    return int(major) if major.isdecimal() else 0


def run(folder: Path, *command: str) -> None:
    """Run a command; its last lines are the reason if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " | ".join(done.stdout.strip().splitlines()[-8:])
        raise Unavailable(f"`{' '.join(('npm', *command[1:]))}` failed: {last}")

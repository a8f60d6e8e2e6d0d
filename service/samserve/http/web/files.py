"""The files of the web page, read once: no path of a request reaches the file system."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samserve.errors import Misconfigured

INDEX = "index.html"

_ASSETS = "assets/"
# Names of assets contain a digest of their content; the others may change with the next version.
_IMMUTABLE = b"public, max-age=31536000, immutable"
_CHECKED = b"no-cache"
_MAX_FILES = 1000
_MAX_BYTES = 128 << 20
_MIN_COMPRESSED_BYTES = 1024

_HTML = b"text/html; charset=utf-8"
_SCRIPT = b"text/javascript; charset=utf-8"
_TEXT_TYPES = {
    ".html": _HTML,
    ".js": _SCRIPT,
    ".mjs": _SCRIPT,
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".json": b"application/json",
    ".map": b"application/json",
    ".webmanifest": b"application/manifest+json",
    ".txt": b"text/plain; charset=utf-8",
    # Browsers compile it while it arrives, only if it has this type.
    ".wasm": b"application/wasm",
}
_OTHER_TYPES = {
    ".png": b"image/png",
    ".jpg": b"image/jpeg",
    ".jpeg": b"image/jpeg",
    ".webp": b"image/webp",
    ".ico": b"image/x-icon",
    ".woff2": b"font/woff2",
}
_TYPES = {**_TEXT_TYPES, **_OTHER_TYPES}

_NOT_BUILT = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>samserve: the page is not installed</title>
<h1>The page is not part of this installation</h1>
<p>The server runs, and serves its API at this address. Its page is in the packages of samserve that
were built with Node.js. To get it, install such a package, for example a released one, or run
<code>make web</code> in a clone of the repository. Then start the server again.</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class PageFile:
    """The content of a file, and the headers that describe it."""

    content: bytes
    content_type: bytes
    caching: bytes
    status: int = 200
    compressed: bytes = b""
    """The content in gzip, empty if it is not smaller, or not sent."""
    digest: str = ""
    """Of the content, for ETag."""


PageFiles = dict[str, PageFile]
"""The files by the path of their URL."""


def default_folder() -> Path:
    """Return the folder of the page in the installed package, or in the source checkout."""
    package = Path(__file__).parents[2]
    packaged = package / "web_page"
    return packaged if packaged.is_dir() else package.parents[1] / "web" / "dist"


def read_page(folder: Path | None, *, compress: bool) -> PageFiles:
    """Return the files of the page, in *folder* or those of this installation.

    If the installation has none, the page states how to get it.  *compress* adds their content in
    gzip.  Raises `Misconfigured` if *folder* has no page, or too many files for one.
    """
    if folder is None and not (default_folder() / INDEX).is_file():
        return {"/": PageFile(_NOT_BUILT, _HTML, b"no-store", 404)}
    given = folder or default_folder()
    try:
        files = dict(_files(given, compress=compress))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Misconfigured(f"http.web_page_folder: {given}: {reason}") from error
    index = files.get(f"/{INDEX}")
    if index is None:
        raise Misconfigured(f"http.web_page_folder: {given}: {INDEX} is not a file")
    return {"/": index, **files}


def _files(folder: Path, *, compress: bool) -> Iterator[tuple[str, PageFile]]:
    # Some installers link every file of a package to one in their cache: there, all are together.
    root = (folder / INDEX).resolve(strict=True).parent
    left = _MAX_BYTES
    for count, path in enumerate(_paths(root)):
        left -= path.stat().st_size
        if count >= _MAX_FILES or left < 0:
            raise Misconfigured(
                f"http.web_page_folder: {folder} is not the folder of a page: it has more than "
                f"{_MAX_FILES} files or {_MAX_BYTES >> 20} MiB"
            )
        name = path.relative_to(root).as_posix()
        yield f"/{name}", _file(name, path.read_bytes(), compress=compress)


def _paths(root: Path) -> Iterator[Path]:
    """Yield the files below *root*, without hidden ones and links that lead out of it."""
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        paths = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if _is_inside(path, root))


def _is_inside(path: Path, root: Path) -> bool:
    # Not a named pipe, which would never end.
    return path.is_file() and path.resolve().is_relative_to(root)


def _file(name: str, content: bytes, *, compress: bool) -> PageFile:
    suffix = Path(name).suffix.lower()
    compressed = b""
    if compress and suffix in _TEXT_TYPES and len(content) >= _MIN_COMPRESSED_BYTES:
        compressed = gzip.compress(content, compresslevel=6, mtime=0)
    return PageFile(
        content,
        _TYPES.get(suffix, b"application/octet-stream"),
        _IMMUTABLE if name.startswith(_ASSETS) else _CHECKED,
        compressed=compressed if len(compressed) < len(content) else b"",
        digest=hashlib.sha256(content).hexdigest(),
    )

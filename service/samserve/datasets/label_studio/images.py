"""The images of Label Studio's tasks: their names in a data set, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from samserve.datasets import image_files
from samserve.datasets.files import check_name
from samserve.datasets.label_studio.exports import RegionObject, Task
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.errors import InvalidRequest
from samserve.types import Size

_LOCAL_FILES = "/data/local-files/"
# Label Studio puts eight hexadecimal digits before the name of an uploaded file.
_UPLOAD = re.compile(r".*/data/upload/\d+/(?:[0-9a-f]{8}-)?(.+)")
_OWN = ("file_name", "width", "height", "image_id", "attributes")


def image_urls(task: Task, config: LabelConfig | None) -> list[str]:
    """Return the URLs of a task's images, in the order of their ``item_index``.

    They are in the field that the label config names, in ``image``, or in the only one with the
    name of an image file.  Raises `InvalidRequest` if there is none.
    """
    if config is not None and config.images:
        found = _urls(task.data.get(config.image_of("")[1]))
    else:
        found = _urls(task.data.get("image")) or _only_image(task.data)
    if not found:
        raise InvalidRequest(task.place, "has no field with the URL of an image")
    return found


def file_name(task: Task, url: str, *, only: bool) -> str:
    """Return the name of an image in a data set: what was written, or the path of its URL.

    *only* is whether it is the only image of the task.  Raises `InvalidRequest` for one that is no
    relative path.
    """
    own = task.data.get("file_name")
    name = own if only and isinstance(own, str) and own else _name_in(url)
    try:
        return check_name(name)
    except InvalidRequest:
        text = f"has no name of an image in its URL {url[:200]!r}"
        raise InvalidRequest(task.place, text) from None


def size_of(task: Task, regions: Sequence[RegionObject], name: str, images: Path | None) -> Size:
    """Return the size of an image: of its regions, of the task's data, or of its file.

    Raises `InvalidRequest` if it is in none of these, and for regions of different sizes.
    """
    sizes = dict.fromkeys(
        Size(each.original_height, each.original_width)
        for each in regions
        if each.original_width and each.original_height
    )
    if len(sizes) > 1:
        first, second, *_ = (f"{each.width}x{each.height}" for each in sizes)
        text = f"has regions of different sizes of the image: {first} and {second}"
        raise InvalidRequest(f"{task.place}: {name}", text)
    for size in sizes:
        return size
    width, height = task.data.get("width"), task.data.get("height")
    if type(width) is int and type(height) is int and width > 0 and height > 0:
        return Size(height, width)
    if images is None:
        text = "has no regions with the size of the image: name the folder of the image files"
        raise InvalidRequest(f"{task.place}: {name}", text)
    return image_files.size(images / name)


def _urls(value: Any) -> list[str]:
    if isinstance(value, list):
        return [each for each in value if isinstance(each, str) and each]
    return [value] if isinstance(value, str) and value else []


def _only_image(data: Mapping[str, Any]) -> list[str]:
    found = [
        each
        for key, value in data.items()
        if key not in _OWN
        for each in [_urls(value)]
        if each and image_files.is_image(PurePosixPath(_name_in(each[0])))
    ]
    return found[0] if len(found) == 1 else []


def _name_in(url: str) -> str:
    if match := _UPLOAD.fullmatch(url):
        return unquote(match.group(1))
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
    except ValueError:
        return ""
    if parts.path.endswith(_LOCAL_FILES) and query.get("d"):
        return query["d"][0].strip("/")
    if parts.scheme in ("", "http", "https"):
        return unquote(parts.path).strip("/")
    # The key of an object in a bucket, which is not quoted.
    return url.partition("://")[2].partition("/")[2].strip("/")

"""Settings of the Label Studio tool: the section `label_studio`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from samserve.settings.section import Section


class LabelStudioSettings(Section):
    """Label Studio, which calls the bridge as an ML backend at `/label-studio`."""

    url: str = ""
    """URL of Label Studio as the bridge reaches it, such as `https://label-studio.example.com`: the
    server of uploaded images, local files and cloud storage. Empty refuses tasks with such images;
    only images with a URL of their own are fetched then."""
    token_file: Path | None = None
    """File with an access token of Label Studio, of a user who may read the projects: a personal
    access token, or a legacy token if the organization allows these. It is sent to `url` only."""
    predictions: Literal["prefetch", "automask"] = "prefetch"
    """What Label Studio gets that asks for predictions without a click, as it does when a task is
    opened, or for `Retrieve predictions`: `prefetch` encodes the image of an opened task and
    predicts nothing, `automask` segments everything, which takes seconds for each task."""
    automask_budget_s: float = Field(default=60.0, gt=0)
    """Time in seconds after which `automask` begins no further task of a request; Label Studio asks
    for the others when predictions are retrieved again. It waits for 100 s."""
    automask_concurrency: int = Field(default=4, ge=1)
    """Tasks of a request that `automask` segments at the same time."""
    automask_points_per_side: int = Field(default=0, ge=0)
    """Points per side of the grid that `automask` prompts with; fewer take less time and find only
    larger objects. 0 is the model's default."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.url and not is_server_url(self.url):
            yield "url is not a URL such as https://label-studio.example.com"
        if self.token_file is not None and not self.url:
            yield "token_file requires url: the token is sent to that server only"


def is_server_url(text: str) -> bool:
    """Return whether a text is the URL of a server, with a path or without."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return valid and not (parts.query or parts.fragment or parts.username is not None)

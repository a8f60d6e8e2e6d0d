"""Includes the files of samserve that the client needs: `files` in the configuration of the hook.

They are in `service/` of the repository, and beside this file in a source distribution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SharedFiles(BuildHookInterface[Any]):
    """Adds the files to a wheel or a source distribution, as `samserve/...`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; *version* is the kind of build, such as ``standard``."""
        if version == "editable":
            raise ValueError(
                "an editable client is that of the server: pip install -e . at the root"
            )
        root = Path(self.root)
        package = root / "samserve"
        if not package.is_dir():
            package = root.parents[1] / "service" / "samserve"
        for name in self.config["files"]:
            build_data["force_include"][str(package / name)] = f"samserve/{name}"

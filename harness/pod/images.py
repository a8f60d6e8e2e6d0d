"""What stands in for the images: their commands, as commands of this checkout and its harness."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import HarnessError

ROOT = Path(__file__).parents[2]

FILES: Mapping[str, Path] = {
    # The default model lies there in the gateway's image.
    "/opt/samserve/models": ROOT / "model_repository",
}
"""What an image holds, by its path there."""

# The version that the harness runs is older than this flag, and shares memory without it.
_UNKNOWN_TO_TRITON = ("--allow-client-shm=",)


def program(command: Sequence[str]) -> list[str]:
    """Give the command that does here what *command* does in the gateway's image."""
    name, *arguments = command
    if name == "samserve":
        return [sys.executable, "-m", "samserve", *arguments]
    if name == "cp":
        return [shutil.which("cp") or "cp", *arguments]
    raise HarnessError(f"no image of the chart is known to have {name}")


def triton_arguments(arguments: Sequence[str]) -> list[str]:
    """Leave out of tritonserver's arguments what the harness's does not know."""
    return [each for each in arguments if not each.startswith(_UNKNOWN_TO_TRITON)]

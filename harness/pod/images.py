"""What stands in for the images: their commands, as commands of this checkout and its harness."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import HarnessError

ROOT = Path(__file__).parents[2]

FILES: Mapping[str, Path] = {
    # The default model lies there in the gateway's image.
    "/opt/samserve/models": ROOT / "model_repository",
}
"""What an image holds, by its path there."""

# What an image with Python has besides, and the documents tell people to run in one.
_TOOLS = ("cp", "df", "sh")
# The version that the harness runs is older than this flag, and shares memory without it.
_UNKNOWN_TO_TRITON = ("--allow-client-shm=",)


def program(command: Sequence[str]) -> list[str]:
    """Return the command that does here what *command* does in the gateway's image."""
    name, *arguments = command
    if name == "samserve":
        return [sys.executable, "-m", "samserve", *arguments]
    if name in _TOOLS:
        return [shutil.which(name) or name, *arguments]
    raise HarnessError(f"no image of the chart is known to have {name}")


def starts_triton(command: Sequence[str]) -> bool:
    """Whether a container's command ends as a tritonserver."""
    return any("tritonserver" in each for each in command)


def given_to_triton(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments that the shell command of a container starts Triton with."""
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "tritonserver"
        shown.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        shown.chmod(0o755)
        told = subprocess.run(
            list(command),
            env={**environment, "PATH": f"{folder}:{os.defpath}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if told.returncode:
        raise HarnessError(f"the command of Triton ends with {told.returncode}: {told.stderr}")
    return told.stdout.splitlines()


def triton_arguments(arguments: Sequence[str]) -> list[str]:
    """Leave out of tritonserver's arguments what the harness's does not know."""
    return [each for each in arguments if not each.startswith(_UNKNOWN_TO_TRITON)]

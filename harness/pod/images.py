"""Replaces the container images: maps their commands to commands of this checkout."""

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

IMAGE_PATHS: Mapping[str, Path] = {
    # The default model in the gateway image.
    "/opt/samserve/models": ROOT / "model_repository",
}
"""Local paths of files in an image, by their path in the image."""

# Other programs in the Python image that the documentation runs in a container.
_TOOLS = ("cp", "df", "sh")
# The harness's Triton is older than this flag and allows shared memory without it.
_UNSUPPORTED_FLAGS = ("--allow-client-shm=",)


def local_command(command: Sequence[str]) -> list[str]:
    """Return the local equivalent of a command in the gateway image."""
    name, *arguments = command
    if name == "samserve":
        return [sys.executable, "-m", "samserve", *arguments]
    if name in _TOOLS:
        return [shutil.which(name) or name, *arguments]
    raise HarnessError(f"{name} is not known to be in any image of the chart")


def starts_triton(command: Sequence[str]) -> bool:
    """Return whether a container's command starts tritonserver."""
    return any("tritonserver" in each for each in command)


def resolve_triton_args(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments with which a container's shell command starts tritonserver."""
    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder) / "tritonserver"
        stub.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        stub.chmod(0o755)
        done = subprocess.run(
            list(command),
            env={**environment, "PATH": f"{folder}:{os.defpath}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise HarnessError(f"Triton's command exited with status {done.returncode}: {done.stderr}")
    return done.stdout.splitlines()


def supported_triton_args(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without those that the harness's tritonserver does not support."""
    return [each for each in arguments if not each.startswith(_UNSUPPORTED_FLAGS)]

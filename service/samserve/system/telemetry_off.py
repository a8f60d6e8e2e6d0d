"""Libraries send nothing about their use to their publishers."""

from __future__ import annotations

import os

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of huggingface_hub, also when transformers calls it.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment variables that libraries read when they are imported."""


def turn_off_telemetry() -> None:
    """Set the variables for this process and those that it starts, whatever they were."""
    os.environ.update(VARIABLES)  # noqa: TID251 - not settings of ours

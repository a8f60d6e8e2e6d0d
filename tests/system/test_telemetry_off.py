"""Libraries that report their use do not do so in our commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("ray")

PROGRAM = """
from samserve.cli.main import main
main(["--version"])
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from ray._common.usage.usage_lib import usage_stats_enabled
print(HF_HUB_DISABLE_TELEMETRY, usage_stats_enabled())
"""


def test_settings_of_libraries_take_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "True False"

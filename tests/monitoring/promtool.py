"""Wrapper of promtool, which evaluates rules and expressions over given series."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.prometheus.programs import find


def promtool(*arguments: str | Path) -> str:
    """Return the output; fail with it if the exit status is not 0."""
    done = subprocess.run(
        [find("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(
    folder: Path, test: dict[str, Any], *, rules: Sequence[str] = (), interval: str = "15s"
) -> None:
    """Fail unless a test in the format of ``promtool test rules`` passes; *rules* are files."""
    content = {"rule_files": list(rules), "evaluation_interval": interval, "tests": [test]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(content))
    promtool("test", "rules", path)

"""Prometheus's own tool, which evaluates rules and expressions over series of a test."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.prometheus.programs import find


def promtool(*arguments: str | Path) -> str:
    """Return what it says; fail with that if it ends with an error."""
    done = subprocess.run(
        [find("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def evaluate(
    folder: Path, test: dict[str, Any], *, rules: Sequence[str] = (), interval: str = "15s"
) -> None:
    """Fail unless a test, in the format of ``promtool test rules``, holds; *rules* are files."""
    content = {"rule_files": list(rules), "evaluation_interval": interval, "tests": [test]}
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(content))
    promtool("test", "rules", path)

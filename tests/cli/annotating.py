"""Options and results of `samserve annotate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import FAKE

FEW = (*FAKE, "--points-per-side", "2", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")


def lines(text: str) -> dict[str, str]:
    """The numbers of a summary by their names."""
    return dict(line.split(": ", 1) for line in text.splitlines())


def records(out: Path) -> dict[str, Any]:
    found = {}
    for path in (out / "records").rglob("*.json"):
        record = json.loads(path.read_bytes())
        assert str(path.relative_to(out / "records")) == record["image"]["file_name"] + ".json"
        found[record["image"]["file_name"]] = record
    return found

"""What the pages say of values is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from samserve.settings import load

from chart.places import README_TEXT, VALUES
from tests.chart.rendered import render

ROOT = VALUES.parents[2]
PAGES = [README_TEXT, ROOT / "docs" / "deploy.md"]
BLOCKS = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
NAMES = re.compile(r"(?<![\w./-])[a-z][A-Za-z]*(?:\.[A-Za-z_]+)+(?![\w/])")
# Names of files and of the Python package look like those of values.
NOT_VALUES = (
    ".md",
    ".crt",
    ".key",
    ".yaml",
    ".toml",
    ".json",
    ".onnx",
    ".pbtxt",
    ".internal",
    ".txt",
    ".predict",
)

DEFAULTS = yaml.safe_load(VALUES.read_text())


def exists(name: str) -> bool:
    value: Any = DEFAULTS | {"config": {section: dict(values) for section, values in load()}}
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_values_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text())
    named = {
        name
        for name in NAMES.findall(text)
        if name.split(".")[0] in DEFAULTS and not name.endswith(NOT_VALUES)
    }

    assert len(named) > 10
    assert [name for name in sorted(named) if not exists(name)] == []


def test_values_that_are_shown_are_taken() -> None:
    shown = [
        values
        for page in PAGES
        for block in BLOCKS.findall(page.read_text())
        if isinstance(values := yaml.safe_load(block), dict)
    ]

    assert len(shown) >= 2
    for values in shown:
        assert render(values)

"""Paths of the chart's files."""

from __future__ import annotations

from pathlib import Path

CHART = Path(__file__).parents[1] / "helm" / "samserve"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
README_TEXT = Path(__file__).parent / "readme.md"

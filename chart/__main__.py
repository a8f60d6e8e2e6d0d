"""``python -m chart generate`` writes schema and README; ``check`` reports outdated files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from chart.paths import README, README_TEXT, SCHEMA, VALUES
from chart.readme import readme
from chart.schema import schema


def generate() -> dict[Path, str]:
    """Return the text of every generated file, by its path."""
    text = VALUES.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return {
        SCHEMA: json.dumps(schema(values), indent=2) + "\n",
        README: readme(README_TEXT.read_text(encoding="utf-8"), text, values),
    }


def main(arguments: list[str]) -> int:
    """Run a command and return the exit status."""
    if arguments not in (["generate"], ["check"]):
        print(__doc__, file=sys.stderr)
        return 2
    files = generate()
    if arguments == ["generate"]:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        return 0
    outdated = [p for p, text in files.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in outdated:
        print(f"{path} does not match values.yaml: run make chart", file=sys.stderr)
    return bool(outdated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

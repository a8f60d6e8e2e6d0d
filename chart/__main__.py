"""``python -m chart generate`` writes schema and README, ``check`` tells whether they are so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from chart.places import README, README_TEXT, SCHEMA, VALUES
from chart.readme import readme
from chart.schema import schema


def generated() -> dict[Path, str]:
    """Make every file that is generated."""
    text = VALUES.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return {
        SCHEMA: json.dumps(schema(values), indent=2) + "\n",
        README: readme(README_TEXT.read_text(encoding="utf-8"), text, values),
    }


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    if arguments not in (["generate"], ["check"]):
        print(__doc__, file=sys.stderr)
        return 2
    files = generated()
    if arguments == ["generate"]:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [p for p, text in files.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        print(f"{path} is not what values.yaml says: run make chart", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

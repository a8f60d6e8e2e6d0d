"""Generate the chart's rules and dashboards, or check that the files match the code."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

from monitoring import alerts, dashboards, recording
from monitoring.rules import rule_file

FILES = Path(__file__).parents[1] / "helm" / "samserve" / "files"
"""Files that the chart includes unchanged."""


def render() -> dict[Path, str]:
    """Return the text of every generated file by its path below `FILES`."""
    return {
        Path("rules/samserve-recording.yaml"): rule_file(recording.groups()),
        Path("rules/samserve-alerts.yaml"): rule_file(alerts.groups()),
        **{Path("dashboards") / name: text for name, text in dashboards.render().items()},
    }


def drift(root: Path = FILES) -> Iterator[str]:
    """Yield the lines of a unified diff between the files in *root* and the generated text."""
    expected = render()
    existing = {
        path.relative_to(root) for path in root.glob("*/*") if path.suffix in (".json", ".yaml")
    }
    for path in sorted(expected.keys() | existing):
        file = root / path
        old = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = old.splitlines(), expected.get(path, "").splitlines()
        yield from difflib.unified_diff(*lines, f"{path}", f"{path} (generated)", lineterm="")


def generate(root: Path = FILES) -> None:
    """Write all files, and remove those that are no longer generated."""
    expected = render()
    for path, text in expected.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for folder in {path.parent for path in expected}:
        for file in (root / folder).iterdir():
            if file.relative_to(root) not in expected:
                file.unlink()


def main() -> int:
    """Return the exit status: 1 if ``check`` finds a difference."""
    parser = argparse.ArgumentParser("python -m monitoring", description=__doc__)
    parser.add_argument("command", choices=("generate", "check"))
    if parser.parse_args().command == "generate":
        generate()
        return 0
    lines = list(drift())
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())

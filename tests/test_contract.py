"""Every change of the API contract is compatible with its baseline and recorded in CHANGELOG.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Tree:
    """A copy of what `scripts/contract` reads and writes."""

    root: Path

    @property
    def baseline(self) -> bytes:
        return (self.root / "proto" / "baseline.binpb").read_bytes()

    def run(self, command: str) -> tuple[int, str]:
        """Run `scripts/contract`; return its exit status and its output."""
        script = self.root / "scripts" / "contract"
        done = subprocess.run(
            [sys.executable, script, command], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def replace(self, old: str, new: str, file: str = "proto/samserve/v1/samserve.proto") -> None:
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def add_field(self) -> None:
        """Add a field to a message."""
        self.replace("message ListModelsRequest {}", "message ListModelsRequest { bool all = 1; }")

    def record(self, line: str, heading: str = "## Unreleased\n") -> None:
        """Add a line to CHANGELOG.md, below a heading."""
        self.replace(heading, f"{heading}\n{line}\n", "CHANGELOG.md")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "scripts").mkdir()
    for file in ("scripts/contract", "buf.yaml", "CHANGELOG.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    return Tree(tmp_path)


def test_the_contract_is_recorded(tree: Tree) -> None:
    assert tree.run("check") == (0, "")


def test_a_changed_comment_needs_no_record(tree: Tree) -> None:
    tree.replace("// Name that selects the model in requests.", "// Name of the model.")

    assert tree.run("check") == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "reported"),
    [
        ("int32 mask_side = 6;", "int32 mask_side = 99;", '"mask_side"'),
        ("int32 mask_side = 6;", "int64 mask_side = 6;", '"mask_side"'),
        ("int32 mask_side = 6;", "int32 side = 6;", '"mask_side"'),
        ("  RAW_LAYOUT_BGR = 2;", "  RAW_LAYOUT_BGR = 4;", '"RawLayout"'),
        ("rpc ListModels(", "rpc GetModels(", '"ListModels"'),
    ],
    ids=["number", "type", "name", "enum value", "method"],
)
def test_breaking_changes_are_reported_by_name(
    tree: Tree, old: str, new: str, reported: str
) -> None:
    tree.replace(old, new)

    code, output = tree.run("check")

    assert code == 1
    assert "breaks clients" in output
    assert reported in output


def test_an_added_field_has_to_be_recorded(tree: Tree) -> None:
    tree.add_field()

    code, output = tree.run("check")

    assert code == 1
    assert "run `make contract`" in output


def test_the_baseline_is_renewed_only_with_a_line_in_the_changelog(tree: Tree) -> None:
    before = tree.baseline
    tree.add_field()

    code, output = tree.run("renew")
    (line,) = re.findall(r"^- Contract `samserve\.v1` `[0-9a-f]{12}`: .*$", output, re.MULTILINE)
    assert code == 1
    assert tree.baseline == before

    tree.record(line)
    assert tree.run("renew") == (0, "")
    assert tree.baseline != before
    assert tree.run("check") == (0, "")


def test_a_line_under_a_released_version_does_not_renew_the_baseline(tree: Tree) -> None:
    before = tree.baseline
    tree.add_field()
    line = tree.run("renew")[1].splitlines()[-1]
    tree.replace("## Unreleased\n", "## Unreleased\n\n## 0.0.0\n", "CHANGELOG.md")

    tree.record(line, "## 0.0.0\n")

    assert tree.run("renew")[0] == 1
    assert tree.baseline == before


def test_an_incompatible_renewal_reports_what_it_breaks(tree: Tree) -> None:
    tree.replace("int32 mask_side = 6;", "int64 mask_side = 6;")

    output = tree.run("renew")[1]
    tree.record(output.splitlines()[-1])

    code, output = tree.run("renew")
    assert code == 0
    assert '"mask_side"' in output
    assert tree.run("check") == (0, "")


def test_a_baseline_that_the_changelog_does_not_record_fails_the_check(tree: Tree) -> None:
    path = tree.root / "CHANGELOG.md"
    path.write_text(path.read_text(encoding="utf-8").replace("- Contract `", "- `"), "utf-8")

    code, output = tree.run("check")

    assert code == 1
    assert "CHANGELOG.md" in output


def test_a_contract_without_changes_is_not_written_again(tree: Tree) -> None:
    path = tree.root / "proto" / "baseline.binpb"
    before = path.stat().st_mtime_ns

    assert tree.run("renew") == (0, "")
    assert path.stat().st_mtime_ns == before

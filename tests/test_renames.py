"""Old public names, as `CHANGELOG.md` lists them, are refused with the new name or are gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmError
from samserve.cli import renames as cli_renames
from samserve.cli.configuration import load_settings
from samserve.cli.errors import UsageError
from samserve.errors import Misconfigured
from samserve.security.policy import parse_policy
from samserve.settings import renames

from chart import schema
from tests.chart.rendered import render
from tests.support.cases import check_all

ROOT = Path(__file__).parents[1]
_TABLES = re.findall(
    r"(?m)^#### (.+)\n\n\| Old \| New \|\n\|---\|---\|\n((?:\|.*\n)+)",
    (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
)
NAMES = {
    heading: dict(re.findall(r"(?m)^\| `(.+?)` \| `(.+?)` \|$", rows)) for heading, rows in _TABLES
}
"""New names by old ones, by the heading of their table."""
SETTINGS = NAMES["Settings"]
QUOTA_KEYS = NAMES["Policy file, keys of a quota"]
CHART_VALUES = NAMES["Chart values"]


def test_tables_are_those_of_the_code() -> None:
    commands = NAMES["Commands, options and environment variables"]

    assert SETTINGS == renames.SETTINGS
    assert QUOTA_KEYS == renames.QUOTAS
    assert CHART_VALUES == schema.RENAMED
    assert commands == {**cli_renames.COMMANDS, **cli_renames.OPTIONS, **cli_renames.VARIABLES}


def refusal(assignments: list[str], file: Path | None = None) -> str:
    with pytest.raises(UsageError) as refused:
        load_settings(file, assignments)
    return "\n".join(refused.value.lines)


def test_old_setting_is_refused_on_the_command_line() -> None:
    text = refusal([f"{old}=1" for old in SETTINGS])

    for old, new in SETTINGS.items():
        assert f"unknown setting {old}: it is now {new}" in text.splitlines()


def test_old_setting_is_refused_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "samserve.toml"
    sections: dict[str, list[str]] = {}
    for old in SETTINGS:
        section, _, name = old.partition(".")
        sections.setdefault(section, []).append(f"{name} = 1\n")
    file.write_text("".join(f"[{name}]\n{''.join(lines)}" for name, lines in sections.items()))

    text = refusal([], file)

    for old, new in SETTINGS.items():
        assert f"unknown setting {old}: it is now {new}" in text.splitlines()


def test_old_setting_is_refused_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for old in SETTINGS:
        monkeypatch.setenv(f"SAMSERVE_{old.replace('.', '__')}".upper(), "1")

    text = refusal([])

    for old, new in SETTINGS.items():
        assert f"unknown setting {old}: it is now {new}" in text.splitlines()


@pytest.mark.parametrize(("old", "new"), QUOTA_KEYS.items())
def test_old_key_of_a_quota_is_refused(old: str, new: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_policy(f"version = 1\n[quotas.default]\n{old} = 1\n".encode())

    assert f"quotas.default.{old}: is now {new}" in refused.value.message


def nested(path: str) -> dict[str, Any]:
    value: Any = 1
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def test_old_chart_value_is_refused() -> None:
    def check(names: tuple[str, str]) -> None:
        old, new = names
        with pytest.raises(HelmError) as refused:
            render(nested(old))
        assert f"'renamed to {new}'" in str(refused.value)

    check_all(check, {old: (old, new) for old, new in CHART_VALUES.items()})


def test_old_setting_is_refused_among_the_chart_values() -> None:
    sections: dict[str, Any] = {}
    for old in SETTINGS:
        section, _, name = old.partition(".")
        sections.setdefault(section, {})[name] = 1
    with pytest.raises(HelmError) as refused:
        render({"config": sections})

    for new in SETTINGS.values():
        assert f"'renamed to config.{new}'" in str(refused.value)


def sources() -> Iterator[str]:
    """Yield the text of what exports, watches or documents public names."""
    for folder in ("service/samserve", "monitoring", "docs", "helm", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".yaml", ".tpl", ".json", ".proto"}:
                yield path.read_text(encoding="utf-8")
    yield (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "heading", ["Metrics", "Recorded series", "Alerts", "Error reasons", "Stages"]
)
def test_old_name_is_gone_and_the_new_one_is_used(heading: str) -> None:
    text = "\n".join(sources())
    words = set(re.findall(r"[\w:]+", text))
    # Counters are declared without their suffix.
    words |= {f"{word}_total" for word in words if word.startswith("samserve_")}
    # Recorded series have their window at the end.
    words |= {re.sub(r"rate\d+[smhd]$", "rate", word) for word in words}

    assert NAMES[heading].keys() & words == set()
    assert set(NAMES[heading].values()) - words == set()


def test_new_log_events_are_logged() -> None:
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "service").rglob("*.py"))

    assert [each for each in NAMES["Log events"].values() if f'"{each}"' not in code] == []

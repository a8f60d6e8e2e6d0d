"""Old names of options, commands and environment variables are errors that name the new one."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.cli import renames

from tests.cli.conftest import Command, Result

EXPORTS = (("export", "sam.pth"), ("models", "pull", "sam_vit_b"))


def assert_usage_error(result: Result, text: str) -> None:
    assert (result.code, result.out, result.error) == (2, "", text)


@pytest.mark.parametrize(("old", "new"), renames.OPTIONS.items())
def test_an_old_option_is_an_error_where_the_new_one_exists(
    samserve: Command, tmp_path: Path, old: str, new: str
) -> None:
    commands = [each for each in EXPORTS if new in samserve(*each, "--help").out]

    assert commands
    for command in commands:
        for option in (old, f"{old}=value"):
            result = samserve(*command, "--repository", tmp_path, option)
            assert_usage_error(result, f"unknown option {old}: it is now {new}")
    assert samserve("doctor", old).error.startswith(f"No such option: {old}")


@pytest.mark.parametrize(("old", "new"), renames.COMMANDS.items())
def test_an_old_command_is_an_error(samserve: Command, old: str, new: str) -> None:
    group, name = old.split()

    assert samserve(*new.split(), "--help").code == 0
    assert_usage_error(samserve(group, name), f"unknown command `{old}`: it is now `{new}`")
    assert samserve("cache", name).error.startswith(f"No such command '{name}'")


@pytest.mark.parametrize(("old", "new"), renames.VARIABLES.items())
def test_an_old_variable_is_an_error_of_the_command_that_reads_it(
    samserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    pull = ("models", "pull", "sam_vit_x", "--repository", tmp_path)
    monkeypatch.setenv(new, str(tmp_path))
    assert "unknown model 'sam_vit_x'" in samserve(*pull).error
    assert new in samserve("models", "pull", "--help").out
    monkeypatch.setenv(old, "value")

    assert_usage_error(samserve(*pull), f"unknown environment variable {old}: it is now {new}")
    assert samserve("config").code == 0

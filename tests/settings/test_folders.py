"""Folders that the environment determines."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.settings.folders import user_models


def test_the_users_models_are_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    default = tmp_path / ".local" / "share" / "samserve" / "models"

    for value, expected in {
        "/data": Path("/data/samserve/models"),
        "": default,
        "relative": default,
    }.items():
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert user_models() == expected


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setattr(Path, "home", no_home)

    assert user_models() is None

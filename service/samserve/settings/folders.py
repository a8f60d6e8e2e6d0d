"""Folders of the current user that the environment determines."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class _DataHome(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="XDG_")

    data_home: str = ""


def user_models() -> Path | None:
    """Return the folder of the user's own models, which may not exist; None without a home.

    It is ``samserve/models`` in the data directory of the XDG Base Directory Specification, which
    ignores relative paths in ``XDG_DATA_HOME``.
    """
    data = Path(_DataHome().data_home)
    if not data.is_absolute():
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return None
    return data / "samserve" / "models"

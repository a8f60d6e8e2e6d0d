"""The limit of open files, of which every connection needs one."""

from __future__ import annotations

import structlog

from samserve.errors import Misconfigured
from samserve.settings import Settings
from samserve.system.limits import raise_file_limit

MIN_CONNECTIONS = 64
"""The server does not start if the system allows a listener fewer, unless its settings ask for
fewer."""
_OTHER_FILES = 256


def within_file_limit(settings: Settings) -> Settings:
    """Return settings whose listeners leave enough files, for example to reload revoked keys.

    Where the limit is too low for ``max_connections`` of the listeners, each gets a part of what
    it allows, and a warning is logged.  Raises `Misconfigured` if it allows fewer than
    `MIN_CONNECTIONS` each.
    """
    wanted = {"server": settings.server.max_connections}
    if settings.http.enabled:
        wanted["http"] = settings.http.max_connections
    least = {name: min(count, MIN_CONNECTIONS) for name, count in wanted.items()}
    files, required = raise_file_limit(), sum(least.values())
    if files < _OTHER_FILES + required:
        raise Misconfigured(
            f"this process may open {files} files, and needs {_OTHER_FILES + required} for "
            f"{required} connections: raise the limit (ulimit -n, LimitNOFILE)"
        )
    needed, more = _OTHER_FILES + sum(wanted.values()), sum(wanted.values()) - required
    if needed <= files:
        return settings
    sections = {}
    for name, count in wanted.items():
        part = (count - least[name]) * (files - _OTHER_FILES - required) // more
        section = getattr(settings, name)
        sections[name] = section.model_copy(update={"max_connections": least[name] + part})
        structlog.get_logger("samserve").warning(
            "connection limit reduced",
            setting=f"{name}.max_connections",
            connections=least[name] + part,
            wanted=count,
            open_files=files,
            open_files_needed=needed,
        )
    return settings.model_copy(update=sections)

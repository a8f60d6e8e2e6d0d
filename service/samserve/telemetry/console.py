"""Log lines for people, as structlog's `ConsoleRenderer` writes them."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

import structlog

# The widths of structlog: that of its longest level, and its default for events.
_LEVEL_WIDTH, _EVENT_WIDTH = len("exception"), 30
# What only structlog renders: a traceback, or a column of its own.
_RARE = frozenset({"exc_info", "exception", "logger", "logger_name", "stack"})
_IS_QUOTED = re.compile(r"[ \t=\r\n\"']").search


def console(*, colours: bool) -> structlog.typing.Processor:
    """Return the renderer of lines for people."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours,
        # The default formatters print local variables, which contain images and prompts.
        exception_formatter=structlog.dev.plain_traceback,
    )
    return renderer if colours else _Plain(renderer)


class _Plain:
    """Renders most lines itself, in a fifth of the time: every call logs one."""

    def __init__(self, full: structlog.typing.Processor) -> None:
        self._full = full

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> Any:
        if not _RARE.isdisjoint(event):
            return self._full(logger, name, event)
        time, level, what = event.pop("timestamp"), event.pop("level"), event.pop("event")
        columns = [time, f"[{level:<{_LEVEL_WIDTH}}]", str(what).ljust(_EVENT_WIDTH)]
        columns += [
            f"{key}=" + (value if isinstance(value, str) and not _IS_QUOTED(value) else repr(value))
            for key, value in sorted(event.items())
        ]
        return " ".join(columns).rstrip(" ")

"""Structured logs on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from samserve.settings import LogSettings


def configure(settings: LogSettings) -> None:
    """Send our lines and those of libraries to standard error in the chosen format.

    Called once, at start.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The prettier formatters print local variables: images and prompts of callers.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    exceptions: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info] if settings.format == "json" else []
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    begin: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*begin, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Unfailing(sys.stderr))),
    )
    _take_over(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*begin, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *exceptions,
                renderer,
            ],
        ),
        # What libraries tell beyond warnings is about themselves.
        max(level, logging.WARNING),
    )


class _Unfailing:
    """Writes where it can: a full disk or a reader that has gone must not fail a call."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told from what others add."""


def _take_over(formatter: logging.Formatter, level: int) -> None:
    """Have the lines of libraries look like ours."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    handler = _Handler(sys.stderr)
    handler.setFormatter(formatter)
    handler.setLevel(level)
    root.addHandler(handler)

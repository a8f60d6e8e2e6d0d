"""Structured logs on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

from samserve.settings import LogSettings


def configure(settings: LogSettings) -> None:
    """Send structlog's lines to standard error in the chosen format; called once, at start."""
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
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )

"""Structured logs on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

from samserve.settings import LogSettings
from samserve.telemetry.console import console

_ENCODER = json.JSONEncoder(default=repr)


def configure(settings: LogSettings) -> None:
    """Write log lines of samserve and of libraries to standard error in the configured format.

    Called once, at startup.
    """
    renderer = _render_json if settings.format == "json" else console(colours=sys.stderr.isatty())
    exceptions: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info] if settings.format == "json" else []
    )
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    common: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*common, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _SafeStream(sys.stderr))),
    )
    _configure_libraries(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *exceptions,
                renderer,
            ],
        ),
        # Of libraries, only warnings and errors are relevant.
        max(level, logging.WARNING),
    )


def _render_json(_logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
    """Render a line as `structlog.processors.JSONRenderer` does, which builds an encoder each."""
    return _ENCODER.encode(event)


class _SafeStream:
    """Ignores errors of writes: a full disk or a closed reader must not fail a call."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        try:  # noqa: SIM105  # `suppress` costs as much as the write
            self._file.write(text)
        except OSError:
            pass

    def flush(self) -> None:
        try:  # noqa: SIM105
            self._file.flush()
        except OSError:
            pass


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of `configure`, distinguishable from those of libraries."""


def _configure_libraries(formatter: logging.Formatter, level: int) -> None:
    """Format the log lines of libraries like those of samserve."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    handler = _Handler(sys.stderr)
    handler.setFormatter(formatter)
    handler.setLevel(level)
    root.addHandler(handler)

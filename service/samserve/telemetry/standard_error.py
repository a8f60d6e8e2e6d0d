"""Standard error with every line as a JSON object, including lines of libraries."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

from samserve.telemetry import log_writer

_FLUSH_S = 5.0
_STDERR = 2
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def redirect_as_json() -> None:
    """Convert all lines that this process writes to standard error to JSON objects.

    Log lines are JSON objects already.  Warnings and uncaught exceptions of Python become one
    object each, with the traceback.  Every line of C libraries and of the interpreter becomes one
    object, by a helper process.  Called once, at startup.
    """
    _pipe_through_writer()
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    # Written in the crashed process; the helper process still reads it.
    faulthandler.enable()


def _pipe_through_writer() -> None:
    sys.stderr.flush()
    source, sink = os.pipe()
    flushed, flushing = os.pipe()
    program = Path(log_writer.__file__)
    # The mask is inherited: a signal to the process group ends the server and not the writer.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        writer = subprocess.Popen(  # noqa: S603  # a file of this package
            # Isolated, without site-packages: it uses only the standard library.
            [sys.executable, "-I", "-S", str(program), str(flushing)],
            stdin=source,
            stdout=_STDERR,
            pass_fds=[flushing],
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    original = os.dup(_STDERR)
    os.dup2(sink, _STDERR)
    for descriptor in (source, sink, flushing):
        os.close(descriptor)
    fallback = threading.Thread(target=_restore_on_exit, args=(writer, original), daemon=True)
    fallback.start()
    atexit.register(_flush, flushed, writer)


def _restore_on_exit(writer: subprocess.Popen[bytes], original: int) -> None:
    """Restore standard error if the writer was killed, by the OOM killer for instance."""
    code = writer.wait()
    os.dup2(original, _STDERR)
    _log().error("log writer ended, lines of libraries are not converted to JSON", code=code)


def _flush(flushed: int, writer: subprocess.Popen[bytes]) -> None:
    """Wait until all lines are written, so that a parent that waits for this process finds them."""
    if writer.returncode is not None:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        # The newline ends a line that may be incomplete.
        os.write(_STDERR, b"\n" + log_writer.FLUSH_MARKER + b"\n")
        select.select([flushed], [], [], _FLUSH_S)
    # The writer outlives this process; this suppresses the ResourceWarning of Python.
    writer.returncode = 0


def _log() -> Any:
    return structlog.get_logger("samserve")


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    _log().critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = None if args.thread is None else args.thread.name
    trace = (args.exc_type, args.exc_value, args.exc_traceback)
    _log().error("uncaught exception in a thread", thread=name, exc_info=trace)


def _unraisable(args: Any) -> None:
    # No repr of the object: it may contain data that must not be logged.
    where = getattr(args.object, "__qualname__", type(args.object).__name__)
    trace = (args.exc_type, args.exc_value, args.exc_traceback)
    _log().error(args.err_msg or "exception ignored", where=where, exc_info=trace)

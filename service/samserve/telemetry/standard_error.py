"""Standard error of which every line is a JSON object, of whatever writer."""

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


def as_json() -> None:
    """Have all that this process writes to standard error from now on arrive as JSON objects.

    Our own lines are such objects.  What Python says, warnings and exceptions that nobody has
    caught, become one object each, with the exception; of what libraries in C and the interpreter
    itself write, every line becomes one, by a process beside this one.  Called once, at start.
    """
    _pipe_through_writer()
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    # Written where the crash has happened; the other process still reads it.
    faulthandler.enable()


def _pipe_through_writer() -> None:
    sys.stderr.flush()
    source, sink = os.pipe()
    flushed, flushing = os.pipe()
    program = Path(log_writer.__file__)
    # It inherits this: what ends the server, sent to its whole group, does not end the writer.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        writer = subprocess.Popen(  # noqa: S603  # a file of ours
            # Isolated, and without site-packages: nothing but the standard library.
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
    without = threading.Thread(target=_do_without, args=(writer, original), daemon=True)
    without.start()
    atexit.register(_flush, flushed, writer)


def _do_without(writer: subprocess.Popen[bytes], original: int) -> None:
    """Write past a writer that was killed, for want of memory for instance: our lines are JSON."""
    code = writer.wait()
    os.dup2(original, _STDERR)
    _log().error("the log writer has ended; lines of libraries are written as they are", code=code)


def _flush(flushed: int, writer: subprocess.Popen[bytes]) -> None:
    """Wait until what was written is out, so that a parent that waits for this process finds it."""
    if writer.returncode is not None:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        # After what may be a line without an end.
        os.write(_STDERR, b"\n" + log_writer.FLUSHED + b"\n")
        select.select([flushed], [], [], _FLUSH_S)
    # It outlives this process; Python need not warn of that.
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
    # No repr of the object: it may hold what no log may.
    where = getattr(args.object, "__qualname__", type(args.object).__name__)
    trace = (args.exc_type, args.exc_value, args.exc_traceback)
    _log().error(args.err_msg or "exception ignored", where=where, exc_info=trace)

"""Keeps what Ray writes apart from the output of the command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

_STDERR = 2


def configure_logging() -> None:
    """Let Ray Data log errors only."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def notices_discarded() -> Iterator[None]:
    """Discard what Ray writes to standard output: all errors that it repeats the work for.

    The command writes nothing there in the meantime.
    """
    with Path(os.devnull).open("w") as null, redirect_stdout(null):
        yield


@contextmanager
def native_messages_discarded() -> Iterator[None]:
    """Discard what Ray's native code writes to standard error.

    It warns of every actor with arguments, as all of Ray Data's have; a user can do nothing.
    """
    saved = os.dup(_STDERR)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _STDERR)
    try:
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(null)
        os.close(saved)

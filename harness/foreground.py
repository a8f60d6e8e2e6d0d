"""Programs that run servers until Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from harness.errors import HarnessError


def in_foreground(body: Callable[[], int | None]) -> int:
    """Run *body* and return the exit status: that of *body*, or 0 if Ctrl-C or SIGTERM ended it.

    A `HarnessError` is printed, and the status is 1.
    """
    # SIGINT as well: a shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return body() or 0
    except KeyboardInterrupt:
        return 0
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1

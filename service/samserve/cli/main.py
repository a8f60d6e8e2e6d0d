"""The entry point: imports everything else where an interrupt is caught."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from samserve.cli.errors import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code: 0, 1 for a failure, 2 for wrong usage."""
    try:
        if arguments is None and sys.argv[1:2] != ["serve"]:
            # What gRPC's core says of a connection is in the command's one line already; it has to
            # be quiet before it is imported.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - not a setting of ours
        from samserve.cli import program

        return program.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("samserve: error: interrupted\n")
        return INTERRUPTED

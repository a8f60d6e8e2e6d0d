"""The entry point: imports the commands inside the block that handles Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from samserve.cli.errors import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a failure, 2 for a usage error."""
    try:
        if arguments is None and sys.argv[1:2] != ["serve"]:
            # The command reports connection errors in one line; gRPC's core must be silenced
            # before it is imported.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - not a setting of ours
            # Threads of torch that wait would spin, and take the processors from other programs and
            # from each other: beside one busy process, training took about twice as long.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # noqa: TID251 - the same
        from samserve.system.telemetry_off import turn_off_telemetry

        turn_off_telemetry()
        from samserve.cli import program

        return program.run(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("samserve: error: interrupted\n")
        return INTERRUPTED

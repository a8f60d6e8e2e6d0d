"""What a fuzzing target is, where targets are found, and how one input is judged."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from samserve.calls.status import Code, Failure
from samserve.errors import SamserveError
from samserve.rpc.status import status_of

NAMES = ("requests", "images", "masks", "rle", "policies", "values")
# A client takes 8 KiB of metadata; the details of an error are a part of them.
_MOST_STATUS_BYTES = 4096


class Refused(Exception):
    """Raised by a target whose input was refused in the documented way, not by a samserve error.

    For instance bytes that are no protobuf message, or a documented ``ValueError``.
    """


class Broken(Exception):
    """A promise of `README.md` does not hold for an input."""


@dataclass(frozen=True, slots=True)
class Target:
    """A function that feeds bytes to the product and checks what comes out.

    ``run`` returns if the product accepted the input, raises a `SamserveError` or `Refused` if it
    refused it, and anything else if something is broken.  ``words`` are pieces of its format, and
    ``mutate`` changes an input whose format bytes alone do not tell.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: Sequence[bytes] = ()
    mutate: Callable[[bytes, Random], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one input may take: seconds of wall time, and MiB by which the peak may rise."""

    seconds: float = 1.0
    memory_mb: int = 256


def load(name: str) -> Target:
    """Import a target: one of `NAMES`, or a module by its dotted name."""
    module = importlib.import_module(name if "." in name else f"fuzz.targets.{name}")
    words, mutate = getattr(module, "WORDS", ()), getattr(module, "mutate", None)
    return Target(name, module.run, module.seeds, words, mutate)


def check(target: Target, data: bytes, bounds: Bounds) -> bool:
    """Run one input; return whether it was accepted, raise `Broken` or what was not documented."""
    peak_mb = _peak_mb()
    accepted, seconds = _timed(target, data)
    if seconds > bounds.seconds:
        # Again, because it may have been the machine that was busy.
        seconds = min(seconds, _timed(target, data)[1])
    if seconds > bounds.seconds:
        raise Broken(f"took {seconds:.2f} s")
    if (grown_mb := _peak_mb() - peak_mb) > bounds.memory_mb:
        raise Broken(f"the process grew by {grown_mb} MiB")
    return accepted


def _timed(target: Target, data: bytes) -> tuple[bool, float]:
    start = time.perf_counter()
    accepted = _accepts(target, data)
    return accepted, time.perf_counter() - start


def _accepts(target: Target, data: bytes) -> bool:
    try:
        target.run(data)
    except Refused:
        return False
    except SystemExit as error:
        raise Broken("wants to end the process") from error
    except SamserveError as error:
        failure = Failure.of(error, "0" * 32)
        if failure.code is Code.INTERNAL:
            raise
        size = len(status_of(failure).SerializeToString())
        if size > _MOST_STATUS_BYTES:
            raise Broken(f"its status has {size} bytes: {str(error)[:200]}") from None
        return False
    return True


def _peak_mb() -> int:
    """Return the most that was resident; not from `getrusage`, which inherits the parent's."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) // 1024


def forget_peak() -> None:
    """Set the peak of memory back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")

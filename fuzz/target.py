"""Fuzzing targets: definition, loading, and the check of one input."""

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

NAMES = ("requests", "images", "masks", "rle", "policies", "values", "embedding_files")
# A client accepts 8 KiB of metadata, which contain the details of an error.
_MAX_STATUS_BYTES = 4096


class Rejected(Exception):
    """Raised by a target for an input that was rejected as documented without a samserve error.

    For instance invalid protobuf bytes, or a documented ``ValueError``.
    """


class PropertyViolated(Exception):
    """A property that `README.md` requires does not hold for an input."""


@dataclass(frozen=True, slots=True)
class Target:
    """A function that passes bytes to samserve and checks the result.

    ``run`` returns if samserve accepted the input, raises a `SamserveError` or `Rejected` if it
    rejected it, and any other exception for a finding.  ``words`` are tokens of the format, and
    ``mutate`` changes inputs whose structure byte mutations would destroy.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: Sequence[bytes] = ()
    mutate: Callable[[bytes, Random], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one input: seconds of wall time, and MiB of growth of the memory peak."""

    seconds: float = 1.0
    memory_mb: int = 256


def load(name: str) -> Target:
    """Import a target: one of `NAMES`, or a module by its dotted name."""
    module = importlib.import_module(name if "." in name else f"fuzz.targets.{name}")
    words, mutate = getattr(module, "WORDS", ()), getattr(module, "mutate", None)
    return Target(name, module.run, module.seeds, words, mutate)


def check(target: Target, data: bytes, limits: Limits) -> bool:
    """Run one input; return whether it was accepted, raise `PropertyViolated` for a finding."""
    peak_mb = _peak_mb()
    accepted, seconds = _timed(target, data)
    if seconds > limits.seconds:
        # Again, because the machine may have been busy.
        seconds = min(seconds, _timed(target, data)[1])
    if seconds > limits.seconds:
        raise PropertyViolated(f"took {seconds:.2f} s")
    if (grown_mb := _peak_mb() - peak_mb) > limits.memory_mb:
        raise PropertyViolated(f"the process grew by {grown_mb} MiB")
    return accepted


def _timed(target: Target, data: bytes) -> tuple[bool, float]:
    start = time.perf_counter()
    accepted = _accepts(target, data)
    return accepted, time.perf_counter() - start


def _accepts(target: Target, data: bytes) -> bool:
    try:
        target.run(data)
    except Rejected:
        return False
    except SystemExit as error:
        raise PropertyViolated("raised SystemExit") from error
    except SamserveError as error:
        failure = Failure.of(error, "0" * 32)
        if failure.code is Code.INTERNAL:
            raise
        size = len(status_of(failure).SerializeToString())
        if size > _MAX_STATUS_BYTES:
            raise PropertyViolated(f"its status has {size} bytes: {str(error)[:200]}") from None
        return False
    return True


def _peak_mb() -> int:
    """Return the peak of resident memory; not from `getrusage`, which inherits the parent's."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) // 1024


def reset_peak() -> None:
    """Reset the peak of memory to the current value."""
    Path("/proc/self/clear_refs").write_text("5")

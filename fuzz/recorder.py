"""Running one input, and judging what it did."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
from samserve.errors import SamserveError
from samserve.rpc.status import code_of, status_of

from fuzz.target import Refused, Target

# What has touched that much memory took longer than this, so only then is it looked at.
_SLOW_ENOUGH_TO_ALLOCATE_S = 0.001
_MEMORY_EVERY = 256
# A client takes 8 KiB of metadata; the details of an error are a part of them.
_MOST_STATUS_BYTES = 4096
_MOST_FINDINGS = 50
# What takes this part of the time that it may take is measured twice.
_SUSPICIOUS = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one input may take: seconds of wall time, and MiB by which memory may grow."""

    seconds: float = 1.0
    memory_mb: int = 256


@dataclass(slots=True)
class Report:
    """What happened so far, as it travels between processes."""

    inputs: int = 0
    seeds: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_ms: float = 0.0
    most_by_one_mb: float = 0.0
    growth_mb: float = 0.0
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)
    """Why, by the place where it came from."""

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)

    def add(self, other: Report) -> None:
        """Add what another process did."""
        self.inputs += other.inputs
        self.seeds = max(self.seeds, other.seeds)
        self.accepted += other.accepted
        self.refused += other.refused
        self.slowest_ms = max(self.slowest_ms, other.slowest_ms)
        self.most_by_one_mb = max(self.most_by_one_mb, other.most_by_one_mb)
        self.growth_mb = max(self.growth_mb, other.growth_mb)
        self.seconds += other.seconds
        self.findings |= other.findings

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, slots=True)
class Memory:
    """What of this process is resident, and the most that ever was, in MiB."""

    resident_mb: float
    peak_mb: float

    @classmethod
    def now(cls) -> Memory:
        """Read both from the system.

        Not from `getrusage`, whose peak a process inherits from the one that started it.
        """
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return cls(*(int(values[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))

    def restarted_mb(self) -> float:
        """Let the peak begin anew; gives from where, which is the old peak if it cannot be."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return self.peak_mb
        return self.resident_mb


class Recorder:
    """Feeds inputs to a target; what breaks a rule is kept in a folder."""

    def __init__(self, target: Target, findings: Path, bounds: Bounds) -> None:
        self.report = Report()
        self._target = target
        self._findings = findings
        self._bounds = bounds
        self._began = time.monotonic()
        memory = Memory.now()
        self._began_mb = memory.resident_mb
        self._seen_mb = memory.restarted_mb()

    def __call__(self, data: bytes) -> None:
        """Run one input and count it; never raises."""
        error, seconds = self._run(data)
        if seconds > self._bounds.seconds / _SUSPICIOUS:
            # Again, because it may have been the machine that was busy.
            seconds = min(seconds, self._run(data)[1])
        report = self.report
        report.inputs += 1
        report.slowest_ms = max(report.slowest_ms, seconds * 1000)
        report.seconds = time.monotonic() - self._began
        self._judge(data, error)
        if seconds > self._bounds.seconds:
            self._found(data, "slow", f"took {seconds:.2f} s")
        if seconds > _SLOW_ENOUGH_TO_ALLOCATE_S or report.inputs % _MEMORY_EVERY == 0:
            self._look_at_memory(data)

    def _run(self, data: bytes) -> tuple[BaseException | None, float]:
        start = time.perf_counter()
        try:
            self._target.run(data)
        except KeyboardInterrupt:
            raise
        # Also what is no Exception: panics of Rust libraries, and SystemExit.
        except BaseException as error:
            return error, time.perf_counter() - start
        return None, time.perf_counter() - start

    def _judge(self, data: bytes, error: BaseException | None) -> None:
        if error is None:
            self.report.accepted += 1
        elif broken := _broken(error):
            self._found(data, _place(error), broken)
        else:
            self.report.refused += 1

    def _look_at_memory(self, data: bytes) -> None:
        """Compare the most since the last look with what was resident then."""
        memory = Memory.now()
        by_one = memory.peak_mb - self._seen_mb
        self._seen_mb = memory.restarted_mb()
        if by_one > self._bounds.memory_mb:
            self._found(data, "memory", f"the process grew by {by_one:.0f} MiB")
        report = self.report
        report.most_by_one_mb = max(report.most_by_one_mb, by_one)
        report.growth_mb = max(report.growth_mb, memory.peak_mb - self._began_mb)

    def _found(self, data: bytes, place: str, why: str) -> None:
        findings = self.report.findings
        if place in findings or len(findings) >= _MOST_FINDINGS:
            return
        findings[place] = why
        name = f"{self._target.name}-{hashlib.sha256(data).hexdigest()[:16]}"
        self._findings.mkdir(parents=True, exist_ok=True)
        (self._findings / name).write_bytes(data)
        (self._findings / f"{name}.txt").write_text(f"{place}: {why}\n")


def _broken(error: BaseException) -> str:
    """Say what is wrong with an error that left the product; empty if it is an answer."""
    if isinstance(error, Refused):
        return ""
    if not isinstance(error, SamserveError) or code_of(error) is grpc.StatusCode.INTERNAL:
        return "".join(traceback.format_exception(error))
    try:
        size = len(status_of(error, "0" * 32).SerializeToString())
    except Exception:
        return f"has no status: {traceback.format_exc()}"
    return f"its status has {size} bytes: {error}" if size > _MOST_STATUS_BYTES else ""


def _place(error: BaseException) -> str:
    """Say where an error was raised, and where its cause was: two such errors are one finding."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
    return place if error.__cause__ is None else f"{place}, from {_place(error.__cause__)}"

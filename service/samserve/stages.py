"""Time measurement of a call: the stages of its critical path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar

T_co = TypeVar("T_co", covariant=True)

OTHER = "other"
"""The stage of unattributed time: waits for the event loop, and code between two stages."""


class Span(Protocol):
    """An open span of a trace."""

    def child(self, name: str) -> Span:
        """Begin a child span."""
        ...

    def end(self) -> None:
        """End the span."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Return the headers that make spans of another process children of this one."""
        ...


class StageClock:
    """The critical path of a call: seconds by stage, whose sum is the time that the clock ran.

    While it runs, a clock is in exactly one stage: the innermost open one, or `OTHER`.  Stages may
    be nested and repeated, but belong to one task: concurrent work has a `branch`.  With a *span*,
    stages are its children.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, span: Span | None = None) -> None:
        self._now = now
        self._span = span
        self._seconds: dict[str, float] = {}
        self._stage = OTHER
        # The start of the stage; None while the clock does not run.
        self._since: float | None = None
        self.current = "receive"
        """The stage that is open, or in which an exception was raised, for error texts."""

    def branch(self) -> StageClock:
        """Create a clock for concurrent work; its spans are children of the stage that is open."""
        return StageClock(self._now, self._span)

    def running(self) -> _Running:
        """Run the clock for the length of the block."""
        return _Running(self)

    def stage(self, name: str) -> _Stage:
        """Charge the time of the block to *name*, also if it raises."""
        return _Stage(self, name)

    @contextmanager
    def following(self, name: str, work: StageClock) -> Iterator[None]:
        """Charge the block to *name*, or to the stages of *work* if *work* runs during it."""
        before = self._seconds.get(name, 0.0)
        try:
            with self.stage(name):
                yield
        except BaseException:
            if work._seconds:
                self.current = work.current
            raise
        finally:
            done = work.seconds
            if done:
                waited = self._seconds.pop(name, before) - before
                if before:
                    self._seconds[name] = before
                self._add(OTHER, max(0.0, waited - sum(done.values())))
                for stage, seconds in done.items():
                    self._add(stage, seconds)

    def entering(
        self,
        name: str,
        manager: AbstractAsyncContextManager[T_co],
        work: StageClock | None = None,
    ) -> Entering[T_co]:
        """Charge the time to enter *manager* to *name*, but not the block.

        For *work*, see `following`.
        """
        return Entering(self.stage(name) if work is None else self.following(name, work), manager)

    @contextmanager
    def in_thread(self, name: str) -> Iterator[StageClock]:
        """Charge the block to *name*, except stages of the yielded clock, which is for a thread.

        A thread that continues after its caller was cancelled does not change this clock.
        """
        work = self.branch()
        try:
            with self.stage(name):
                yield work
        finally:
            for stage, seconds in work.seconds.items():
                if stage != OTHER and self._since is not None:
                    self._add(stage, seconds)
                    self._add(name, -seconds)

    def rename(self, old: str, new: str) -> None:
        """Charge the time of *old* to *new*, once the stage is known."""
        if old in self._seconds:
            self._add(new, self._seconds.pop(old))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage until now, in the order in which they first ended; `OTHER` last."""
        if self._since is not None:
            self._charge()
        seconds = dict(self._seconds)
        if OTHER in seconds:
            seconds[OTHER] = seconds.pop(OTHER)
        return seconds

    def headers(self) -> Mapping[str, str]:
        """Return the headers that make spans of another process children of the open stage."""
        return {} if self._span is None else self._span.headers()

    def _charge(self) -> None:
        since = self._since
        if since is not None:
            # Without `_add`: this runs thirty times a call.
            now = self._since = self._now()
            stage, seconds = self._stage, self._seconds
            seconds[stage] = seconds.get(stage, 0.0) + now - since

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


class _Running:
    """The block in which a clock runs; a class, as a generator costs twice as much."""

    __slots__ = ("_clock",)

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._clock._since = self._clock._now()

    def __exit__(self, *_: object) -> None:
        self._clock._charge()
        self._clock._since = None


class _Stage:
    """The block of a stage."""

    __slots__ = ("_clock", "_name", "_outer", "_outer_span")

    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock = clock
        self._name = name

    # Both charge as `StageClock._charge` does, without calling it: two dozen times a call.

    def __enter__(self) -> Self:
        clock = self._clock
        outer = self._outer = clock._stage
        since = clock._since
        if since is not None:
            now = clock._since = clock._now()
            clock._seconds[outer] = clock._seconds.get(outer, 0.0) + now - since
        clock._stage = clock.current = self._name
        span = self._outer_span = clock._span
        if span is not None:
            clock._span = span.child(self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        clock, name = self._clock, self._name
        since = clock._since
        if since is not None:
            now = clock._since = clock._now()
            clock._seconds[name] = clock._seconds.get(name, 0.0) + now - since
        outer = clock._stage = self._outer
        if kind is None and outer != OTHER:
            clock.current = outer
        span = clock._span
        if span is not None:
            span.end()
            clock._span = self._outer_span


class Entering(Generic[T_co]):
    """A manager whose entry is charged to a stage; a class for the same reason as the others."""

    def __init__(
        self, stage: AbstractContextManager[object], manager: AbstractAsyncContextManager[T_co]
    ) -> None:
        self._stage = stage
        self._manager = manager

    async def __aenter__(self) -> T_co:
        with self._stage:
            return await self._manager.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._manager.__aexit__(*error)

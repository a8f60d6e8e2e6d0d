"""A reference in a process of its own, so that its memory and its threads are its own too."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.machine import resident
from benchmarks.results import Cost

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Waiting threads of torch sleep: spinning ones would slow down whatever runs beside them."""

IMPORTS = ("torch", "tests.oracle.generator")
"""What most references import: not part of the memory that their models need."""


@dataclass(frozen=True)
class Timed:
    """The result of one call, and its cost in the process of the reference."""

    value: Any
    cost: Cost


class ReferenceProcess:
    """An object of another process: ``load`` makes it, `call` calls its methods.

    ``load`` can be pickled. Where a method returns a function, that is called for the result, after
    the time was taken.
    """

    def __init__(
        self, load: Callable[[], object], *, threads: int, imports: Sequence[str] = IMPORTS
    ) -> None:
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        with environment(PASSIVE):
            self._process = context.Process(
                target=_serve, args=(there, load, threads, imports), daemon=True
            )
            self._process.start()
        there.close()
        self._connection = here
        self.pid = self._process.pid or 0
        self.bytes_before_loading: int = self._receive()
        self.bytes_loaded: int = self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, method: str, *arguments: object) -> Timed:
        """Call a method of the reference; the cost is that of its process."""
        self._connection.send((method, arguments))
        result: Timed = self._receive()
        return result

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        return self._connection.recv()


def in_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in another process, whose memory is then free again."""
    context = multiprocessing.get_context("spawn")
    with environment(PASSIVE):
        process = context.Process(target=function, args=arguments)
        process.start()
    process.join()
    if process.exitcode:
        name = getattr(function, "__name__", "the function")
        raise RuntimeError(f"{name} failed in another process")


def _serve(
    connection: Connection, load: Callable[[], object], threads: int, imports: Sequence[str]
) -> None:
    import torch  # noqa: PLC0415 - only in the process of a reference

    torch.set_num_threads(threads)
    for name in imports:
        importlib.import_module(name)
    connection.send(resident(os.getpid()))
    reference = load()
    connection.send(resident(os.getpid()))
    with torch.inference_mode():
        while True:
            try:
                method, arguments = connection.recv()
            except EOFError:
                return
            connection.send(_timed(functools.partial(getattr(reference, method), *arguments)))


def _timed(call: Callable[[], Any]) -> Timed:
    started, cpu = time.perf_counter(), time.process_time()
    value = call()
    cost = Cost(time.perf_counter() - started, time.process_time() - cpu)
    return Timed(value() if callable(value) else value, cost)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started in the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

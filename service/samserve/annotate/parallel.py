"""Several items under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(
    items: Iterable[T], use: Callable[[T], Awaitable[None]], concurrency: int
) -> None:
    """Await *use* of each item, *concurrency* at a time.

    The first error cancels the others, and is raised alone.
    """
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await use(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None

"""Work done in threads ahead of the one who waits for it, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def ahead(
    pool: Executor | None,
    work: Callable[[Item], Done],
    items: Iterable[Item],
    weigh: Callable[[Item], int],
    *,
    count: int,
    weight: int,
    prompt: bool = False,
) -> Iterator[Done]:
    """What work makes of the items, in their order.

    Items are taken, in the caller's thread, while no more than count of them, and no more than
    that weight, are being worked on or wait to be taken over. One that alone is too heavy is worked
    on alone.

    Args:
        pool: does the work; None: the caller's thread does it, one item at a time.
        work: whatever it raises ends everything.
        items: where they take long to come, results should be prompt.
        weigh: weight of an item.
        count, weight: the bounds.
        prompt: results are handed over once they are known, not only when no more items fit.
    """
    if pool is None:
        yield from map(work, items)
        return
    begun: deque[tuple[Future[Done], int]] = deque()
    held = 0
    for item in items:
        own = weigh(item)
        while begun and (
            len(begun) >= count or held + own > weight or (prompt and begun[0][0].done())
        ):
            future, released = begun.popleft()
            held -= released
            yield future.result()
        begun.append((pool.submit(work, item), own))
        held += own
    while begun:
        yield begun.popleft()[0].result()

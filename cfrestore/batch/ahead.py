"""Work done in threads ahead of its consumer, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

from cfrestore.stopping import stop_with

Item = TypeVar("Item")
Done = TypeVar("Done")


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """Threads for `ahead`; what they have not begun at the end is not done.

    After an error or an interruption, what takes minutes is given up too, see `stopping`.
    """
    end = Event()
    pool = ThreadPoolExecutor(count, initializer=stop_with, initargs=(end,))
    try:
        yield pool
    except BaseException:
        end.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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
    """Maps work over the items, in order.

    Items are taken in the caller's thread, as long as at most `count` of them, with at most that
    total weight, are in progress or wait to be consumed. An item heavier than that is processed on
    its own.

    Args:
        pool: runs the work; None: the caller's thread does, one item at a time.
        work: anything it raises ends the iteration.
        weigh: weight of an item.
        count, weight: the bounds.
        prompt: yield results as soon as they are known, not only when no more items fit; for items
            that arrive slowly.
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


def grouped(
    items: Iterable[Item],
    faces: Callable[[Item], int],
    weigh: Callable[[Item], int],
    *,
    enough: int,
    count: int,
    weight: int,
) -> Iterator[list[Item]]:
    """Items in order, in groups that have enough faces for a batch where possible.

    Args:
        faces, weigh: number of faces, and weight, of an item.
        enough: faces for which a group need not wait for more; items without any never wait.
        count, weight: the most items, and the largest weight, for which a group waits.
    """
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        own = sum(map(faces, waiting))
        full = len(waiting) >= count or sum(map(weigh, waiting)) >= weight
        if own == 0 or own >= enough or full:
            yield waiting
            waiting = []
    if waiting:
        yield waiting

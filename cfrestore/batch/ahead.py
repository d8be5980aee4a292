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
    """A pool of threads for `ahead`; work that has not begun at the end of the context is dropped.

    After an error or an interruption, long computations in progress stop early too, see `stopping`.
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
    begun: deque[tuple[Future[Done], int]] | None = None,
) -> Iterator[Done]:
    """Maps work over the items, in order.

    Items are taken in the caller's thread. At most `count` of them, of at most `weight` in total,
    are in progress or wait to be consumed at any time. An item heavier than `weight` is processed
    on its own.

    Args:
        pool: runs the work; None: the caller's thread does, one item at a time.
        work: anything it raises ends the iteration.
        weigh: weight of an item.
        count, weight: the bounds.
        prompt: yield results as soon as they are known, not only when no more items fit; for items
            that arrive slowly.
        begun: an empty deque, which holds what is in progress or waits to be consumed, with its
            weight; after an interruption it tells what was left.
    """
    if pool is None:
        yield from map(work, items)
        return
    begun = deque() if begun is None else begun
    held = 0
    for item in items:
        added = weigh(item)
        while begun and (
            len(begun) >= count or held + added > weight or (prompt and begun[0][0].done())
        ):
            held -= begun[0][1]
            yield _first(begun)
        begun.append((pool.submit(work, item), added))
        held += added
    while begun:
        yield _first(begun)


def _first(begun: deque[tuple[Future[Done], int]]) -> Done:
    """Waits for the first result, and only then removes it: waiting may be interrupted."""
    done = begun[0][0].result()
    begun.popleft()
    return done


def completed(begun: Iterable[tuple[Future[Done], int]]) -> Iterator[Done]:
    """The results that are there, without waiting for others; see `begun` of `ahead`."""
    for future, _ in begun:
        if future.done() and not future.cancelled() and future.exception() is None:
            yield future.result()


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
        faces, weigh: give the number of faces, and the weight, of an item.
        enough: a group with so many faces is complete; so is one without any faces.
        count, weight: a group with so many items, or of so much weight, is complete too.
    """
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        found = sum(map(faces, waiting))
        full = len(waiting) >= count or sum(map(weigh, waiting)) >= weight
        if found == 0 or found >= enough or full:
            yield waiting
            waiting = []
    if waiting:
        yield waiting

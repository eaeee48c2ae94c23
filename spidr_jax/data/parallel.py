"""Read many files by a few threads, in order, with a progress bar."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_AHEAD = 64  # tasks in flight for each thread, so that ten million need no memory
_T = TypeVar("_T")


def each(function: Callable[[int], _T], count: int, *, jobs: int, title: str = "") -> Iterator[_T]:
    """Yield `function(0)` .. `function(count - 1)`, computed by threads.

    Args:
        function: function of a number.
        count: number of calls.
        jobs: threads, 0 for one a core.
        title: text of the progress bar; empty for none.
    """
    jobs = jobs or os.cpu_count() or 1
    pending: deque[Future[_T]] = deque()
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=count, desc=title, disable=not title, unit=" files", dynamic_ncols=True) as bar,
    ):
        for index in range(count):
            pending.append(pool.submit(function, index))
            if len(pending) > _AHEAD * jobs:
                yield pending.popleft().result()
                bar.update()
        while pending:
            yield pending.popleft().result()
            bar.update()

"""Ends a process whose work stands still, with the stacks of all its threads."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

STATUS = 124  # of the exit, as of timeout(1)
SLOW_SECONDS = 1800  # for what may take longer than a step, as compilation


class Watchdog:
    """Waits for the next sign of life in a thread of its own."""

    def __init__(self, seconds: float) -> None:
        """Allow `seconds` between signs of life."""
        self._seconds = seconds
        self._closed = threading.Event()
        self.beat("start", SLOW_SECONDS)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, what: str, seconds: float = 0) -> None:
        """Begin something that takes at most `seconds`, or those of the watchdog if more."""
        allowed = max(seconds, self._seconds)
        now = time.monotonic()
        self._doing = (what, now, now + allowed)
        # Where a thread holds the interpreter's lock ours cannot run, this one still can.
        faulthandler.dump_traceback_later(1.5 * allowed + 5, exit=True)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 5)):
            what, begun, due = self._doing
            if time.monotonic() > due:
                seconds = round(time.monotonic() - begun)
                print(f"error: stuck for {seconds} s in: {what}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback()
                os._exit(STATUS)


_watchdogs: list[Watchdog] = []  # none or the one of this process


@contextlib.contextmanager
def watch(seconds: float) -> Iterator[None]:
    """End this process with `STATUS` where `beat` is not called for `seconds`; 0: never."""
    if not seconds:
        yield
        return
    watchdog = Watchdog(seconds)
    _watchdogs.append(watchdog)
    try:
        yield
    finally:
        _watchdogs.remove(watchdog)
        watchdog.close()


def beat(what: str, seconds: float = 0) -> None:
    """Tell the watchdog, if there is one, what begins and, if it takes long, how long at most."""
    for watchdog in _watchdogs:
        watchdog.beat(what, seconds)

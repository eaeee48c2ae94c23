"""How long steps take, several contenders taking turns so that the machine's noise meets all."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

Start = Callable[[], Callable[[], object]]
"""Starts a step and gives what waits for its end."""


def durations(start: Start, count: int) -> list[float]:
    """Time steps from the end of one to the end of the next.

    As in training, a step is started before the one before it has ended, so that a device never
    waits for its next; two steps more than asked for are run.
    """
    wait, ends = start(), []
    for _ in range(count + 1):
        following = start()
        wait()
        ends.append(time.perf_counter())
        wait = following
    wait()  # not timed: where starting waits too, it had ended already
    return np.diff(ends).tolist()


def take_turns(starts: Mapping[str, Start], steps: int) -> dict[str, list[list[float]]]:
    """Time at least so many steps of each contender, in rounds.

    Returns:
        For each its rounds' times in seconds: up to four rounds where there are several.
    """
    rounds = min(4, steps) if len(starts) > 1 else 1
    found: dict[str, list[list[float]]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, start in starts.items():
            found[name].append(durations(start, math.ceil(steps / rounds)))
    return found


def stepper(compiled: Callable[..., tuple[Any, Any]], carry: Any, *others: Any) -> Start:
    """Run `compiled(carry, *others) -> (carry, output)` again and again, each on what it gave."""
    kept = [carry]

    def start() -> Callable[[], object]:
        kept[0], output = compiled(kept[0], *others)
        return partial(jax.block_until_ready, output)

    return start


def measure_peak(dtype: Any) -> float:
    """FLOP per second of a large square matrix product: the fastest of a few runs."""
    on_cpu = jax.default_backend() == "cpu"
    size, products = (2048, 1) if on_cpu else (8192, 10)
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size)) for key in keys)

    @jax.jit
    def multiply(x: jax.Array, by: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, x: x @ by, x)

    # products keep the size of their numbers
    arguments = left.astype(dtype), (right / math.sqrt(size)).astype(dtype)
    jax.block_until_ready(multiply(*arguments))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(*arguments))
        seconds.append(time.perf_counter() - begin)
    return products * 2 * size**3 / min(seconds)

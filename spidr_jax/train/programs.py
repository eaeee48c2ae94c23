"""Compiled training steps: each shape once, ahead of its need and in the background."""

import math
import os
import platform
import time
from collections.abc import Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from spidr_jax.data.pipeline import Shapes
from spidr_jax.train import distributed, placement, watchdog
from spidr_jax.train.task import Batch, Task


class Programs:
    """The training step's programs, by phase and shapes of the batch."""

    def __init__(self, task: Task, mesh: Mesh, fsdp: bool) -> None:
        """Compile nothing yet."""
        self._task, self._mesh, self._fsdp = task, mesh, fsdp
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._futures: dict[Any, Future[jax.stages.Compiled]] = {}

    def close(self) -> None:
        """Leave out what is not begun, and wait for what is: a compilation cannot be stopped."""
        if self.compiling():
            watchdog.beat(watchdog.SLOW_SECONDS)
            distributed.print0("waiting for a compilation to end")
        self._thread.shutdown(cancel_futures=True)

    def compiling(self) -> bool:
        """Whether a compilation goes on, which `close` would wait for."""
        return any(future.running() for future in self._futures.values())

    def prepare(self, kinds: Iterable[Shapes], phase: int) -> None:
        """Compile the programs of a phase one after the other, while others run."""
        for shapes in kinds:
            if (place := _key(shapes, phase)) not in self._futures:
                self._futures[place] = self._thread.submit(self._compile, shapes, phase)

    def get(self, batch: Batch, phase: int) -> jax.stages.Compiled:
        """The program for a batch; waits for it, or compiles it, where it is not there.

        Whatever the compiler raises in the background is raised here.
        """
        shapes = _shapes(batch)
        future = self._futures.get(_key(shapes, phase))
        if future is None or future.cancel():
            future = Future()
            future.set_result(self._compile(shapes, phase))
            self._futures[_key(shapes, phase)] = future
        return future.result()

    def ready(self, batch: Batch, phase: int) -> bool:
        """Whether `get` would not wait."""
        future = self._futures.get(_key(_shapes(batch), phase))
        return future is not None and future.done()

    def _compile(self, shapes: Shapes, phase: int) -> jax.stages.Compiled:
        start = time.perf_counter()
        step = placement.jit_step(self._task, self._mesh, self._fsdp, phase)
        state = placement.abstract_state(self._task, self._mesh, self._fsdp, phase)
        key = jax.eval_shape(lambda: jax.random.key(0))
        whole = placement.replicated(self._mesh)
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
        program = step.lower(state, placement.abstract_batch(shapes, self._mesh), key).compile()
        largest = max((shape for shape, _ in shapes.values()), key=math.prod)
        seconds = time.perf_counter() - start
        distributed.print0(
            f"compiled the step for {' x '.join(f'{size:,}' for size in largest)}"
            f"{f', phase {phase + 1}' if phase else ''} in {seconds:.1f} s"
        )
        return program


def _shapes(batch: Batch) -> Shapes:
    return {name: (x.shape, x.dtype) for name, x in batch.items()}


def _key(shapes: Shapes, phase: int) -> Hashable:
    return phase, *sorted((name, shape) for name, (shape, _) in shapes.items())


def use_cache(folder: str) -> None:
    """Keep compiled programs on disk, where the user has not set JAX's own options for it.

    Args:
        folder: empty for none. A CPU's programs lie in a folder of its host: they might not run
            on another one.
    """
    if not folder or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        path = Path(folder).expanduser()
        if jax.default_backend() == "cpu":
            path /= f"cpu-{platform.node()}"
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written")
    except (OSError, RuntimeError) as error:  # the latter: ~ of an unknown user
        distributed.print0(f"warning: config.compilation_cache: {error}; all starts compile")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    compilation_cache.reset_cache()  # something compiled before would have decided for none

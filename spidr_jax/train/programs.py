"""Compiled training steps: each shape once, ahead of its need and in the background.

B rows of a global batch, S samples of each.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from spidr_jax.data.plan import Plan
from spidr_jax.method.step import StepConfig
from spidr_jax.train import distributed, phases, sharding, watchdog

LOOKAHEAD = 2_000  # steps of the plan that are searched for the shapes needed next
FREEZE_AHEAD = 1_000  # steps before the frozen phase at which its programs are begun

Shape = tuple[int, int]
Program = jax.stages.Compiled


class Programs:
    """The training step's programs, by phase and batch shape (B, S); a context manager."""

    def __init__(self, config: StepConfig, mesh: Mesh, fsdp: bool) -> None:
        """Compile nothing yet."""
        self._config, self._mesh, self._fsdp = config, mesh, fsdp
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._futures: dict[tuple[bool, Shape], Future[Program]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave out what is not begun, and wait for what is: a compilation cannot be stopped."""
        if any(future.running() for future in self._futures.values()):
            watchdog.beat(watchdog.SLOW_SECONDS)
            distributed.print0("waiting for a compilation to end")
        self._thread.shutdown(cancel_futures=True)

    def prepare(self, shapes: Iterable[Shape], frozen: bool) -> None:
        """Compile the programs of a phase one after the other, while others run."""
        for shape in shapes:
            if (frozen, shape) not in self._futures:
                future = self._thread.submit(self._compile, shape, frozen)
                self._futures[frozen, shape] = future

    def get(self, shape: Shape, frozen: bool) -> Program:
        """The program of a shape; waits for it, or compiles it, where it is not there.

        Whatever the compiler raises in the background is raised here.
        """
        future = self._futures.get((frozen, shape))
        if future is None or future.cancel():
            future = Future()
            future.set_result(self._compile(shape, frozen))
            self._futures[frozen, shape] = future
        return future.result()

    def ready(self, shape: Shape, frozen: bool) -> bool:
        """Whether `get` would not wait."""
        future = self._futures.get((frozen, shape))
        return future is not None and future.done()

    def _compile(self, shape: Shape, frozen: bool) -> Program:
        start = time.perf_counter()
        state = phases.abstract_state(self._config, self._mesh, self._fsdp, frozen)
        step = phases.jit_step(self._config, self._mesh, self._fsdp, frozen)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(self._mesh))
        program = step.lower(state, abstract_batch(shape, self._mesh), key).compile()
        rows, samples = shape
        phase = ", frozen extractor" if frozen else ""
        seconds = time.perf_counter() - start
        distributed.print0(f"compiled {rows} x {samples:,} samples{phase} in {seconds:.1f} s")
        return program


def abstract_batch(shape: Shape, mesh: Mesh) -> dict[str, Any]:
    """A batch as `pipeline.batches` and `sharding.put_batch` give it."""
    rows = sharding.split_rows(mesh)
    scalars = jax.ShapeDtypeStruct(shape[:1], jnp.float32, sharding=rows)
    waveforms = jax.ShapeDtypeStruct(shape, jnp.int16, sharding=rows)
    return {"waveforms": waveforms, "mean": scalars, "inv_std": scalars}


def shapes_needed(plan: Plan, start: int, stop: int) -> list[Shape]:
    """The shapes (B, S) of batches `start` to before `stop`, in the order of their first need."""
    near = (plan.batch(step).num_samples for step in range(start, min(stop, start + LOOKAHEAD)))
    lengths = dict.fromkeys(near)
    if stop > start + LOOKAHEAD:
        lengths |= dict.fromkeys(length for length, number in plan.batches.items() if number)
    return [(plan.rows[length], length) for length in lengths]


def use_cache(folder: str) -> None:
    """Keep compiled programs on disk, where the user has not set JAX's own options for it.

    Args:
        folder: empty for none. A CPU's programs lie in a folder of its kind, as they would not
            run on another one.
    """
    if not folder or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    path = Path(folder).expanduser()
    if jax.default_backend() == "cpu":
        path /= _cpu_kind()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written")
    except OSError as error:
        distributed.print0(f"warning: config.compilation_cache: {error}; every start compiles anew")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    compilation_cache.reset_cache()  # something compiled before would have decided for none


def _cpu_kind() -> str:
    """A name for CPUs with the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "cpu-" + hashlib.sha256("\n".join(kinds).encode()).hexdigest()[:12]

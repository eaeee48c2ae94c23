"""The processes of a run: how they find each other, act as one, and end together."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from spidr_jax.train import watchdog

TRIO = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DEVICES = "JAX_LOCAL_DEVICE_IDS"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_START_SECONDS = 600  # Kubernetes pulls the image on some hosts minutes later than on others
_HEARTBEAT_SECONDS = 30  # a dead process is noticed after so long, and all others end
_SHUTDOWN_SECONDS = 30  # the last save is over by then, so that all leave within seconds


def choose(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """How this process joins the run: arguments of `jax.distributed.initialize`, None if alone.

    Explicit variables come first (Kubernetes, local_multiprocess.sh, any launcher), then what JAX
    detects by itself (several tasks under srun, a TPU VM). Everything else is one process, also
    inside a SLURM allocation.

    Raises:
        ValueError: a variable is missing or malformed; names it and what is allowed.
    """
    devices = {}
    if environ.get(DEVICES):
        text = _checked(environ, DEVICES, r"\d+(,\d+)*", "numbers, as in 0,1")
        devices["local_device_ids"] = [int(part) for part in text.split(",")]
    missing = [name for name in TRIO if not environ.get(name)]
    if not missing:
        address, number, place = TRIO
        found: dict[str, Any] = {
            "coordinator_address": _checked(environ, address, r".+:\d{1,5}", "host:port"),
            "num_processes": int(_checked(environ, number, r"[1-9]\d*", "an integer from 1")),
            "process_id": int(_checked(environ, place, r"\d+", "an integer from 0")),
        }
        if found["process_id"] >= found["num_processes"]:
            last = found["num_processes"] - 1
            raise ValueError(f"{place} = {found['process_id']}: allowed is 0 to {last}")
        host = found["coordinator_address"].rpartition(":")[0]
        if host == "localhost" or host.startswith("127."):  # else it would listen to any machine
            found["coordinator_bind_address"] = found["coordinator_address"]
        return found | devices | {"cluster_detection_method": "deactivate"}
    if len(missing) < len(TRIO):
        raise ValueError(f"{', '.join(missing)} not set: allowed is all or none of {TRIO}")
    # Without srun, or in a step of one task, the variables of the allocation may name more tasks.
    if all(environ.get(name) for name in _SLURM) and environ.get("SLURM_STEP_NUM_TASKS") != "1":
        return devices | {"cluster_detection_method": "slurm"}
    # JAX sets this on import where there are TPU chips and libtpu.
    if "TPU_ML_PLATFORM" in environ and environ.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return devices
    return None


def start() -> None:
    """Join the run's other processes, if it has any; does nothing the second time.

    Where the others do not come in time, JAX aborts this process (status 134) and says so.

    Raises:
        ValueError: the environment is wrong, in one line.
        RuntimeError: the devices cannot be opened.
    """
    arguments = choose(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    text = f"waiting up to {_START_SECONDS} s for the other processes: {arguments or 'TPU'}"
    print(text, file=sys.stderr, flush=True)
    # The processes reach each other directly; gRPC would take the proxy even at home.
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    kept = {name: os.environ.pop(name) for name in proxies}
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    finally:
        os.environ.update(kept)
    # Now that all are here: gloo gives the first exchange 30 s, which compilation would exceed.
    all_gather_int(0)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Belong to the run's processes; an error ends this one at once, so that the others end too.

    Waiting for the others, as an orderly end does, would leave all hanging: they wait for this
    one in a sum over devices. They notice the closed connection or the missing heartbeat.
    """
    start()
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1 and jax.distributed.is_initialized():
            _end(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return jax.process_index() == 0


def tell(text: str) -> None:
    """Print a line; a reader who has gone (`| head`) or a full disk ends no run."""
    try:
        print(text, flush=True)
    except OSError:  # what waits in the buffer would fail again, and at the end
        number = sys.stdout.fileno()
        kept = os.dup(number)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)
            sys.stdout.flush()
        os.dup2(kept, number)
        os.close(kept)


def print0(text: str) -> None:
    """Print what all processes know, once."""
    if is_first():
        tell(text)


def name() -> str:
    """What begins a line of this process: its number, nothing where it is the only one."""
    number = jax.process_count()
    return f"process {jax.process_index()} of {number}: " if number > 1 else ""


def barrier(name: str, seconds: int) -> None:
    """Wait until all processes have come here, as while the first does something for all.

    Args:
        name: name of the place, another one each time.
        seconds: time after which those that wait give up.

    Raises:
        RuntimeError: some did not come in time.
    """
    if jax.process_count() > 1:
        watchdog.beat(seconds)
        multihost.get_barrier_sync_fn()(key=f"spidr_jax {name}", timeout_ms=1000 * seconds)


def all_gather_int(value: int) -> list[int]:
    """The values (32 bits) of all processes, in their order; all must call it."""
    if jax.process_count() == 1:
        return [value]
    return np.ravel(multihost_utils.process_allgather(np.int32(value))).tolist()


def _end(error: BaseException) -> NoReturn:
    if isinstance(error, SystemExit):
        text = str(error.code)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted: the last checkpoint, if there is one, stays"
    else:
        traceback.print_exception(error)
        text = f"ended by this {type(error).__name__}"
        # gloo's errors may come as ValueError, where an exchange is dispatched
        if isinstance(error, jax.errors.JaxRuntimeError) or "onnection" in str(error):
            text += "; where a connection broke, another process ended first: its output says why"
    print(f"{name()}{text}", file=sys.stderr, flush=True)
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _checked(environ: Mapping[str, str], name: str, pattern: str, allowed: str) -> str:
    if not re.fullmatch(pattern, environ[name]):
        raise ValueError(f"{name} = {environ[name]!r}: allowed is {allowed}")
    return environ[name]

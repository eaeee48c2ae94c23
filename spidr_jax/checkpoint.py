"""Checkpoints of a run: state, data position and config, with Orbax."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spidr_jax import processes


class Checkpoints:
    """The checkpoints under a run's folder; saving goes on in the background."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Open or make `folder`; the last `keep` checkpoints stay.

        Raises:
            ValueError: the processes see different folders.
        """
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            preservation_policy=preservation_policy.LatestN(keep),
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        newest = processes.gather(-1 if (step := self.latest()) is None else step)
        if len(set(newest)) > 1:
            raise ValueError(
                f"{folder} must be one folder for all processes; their newest checkpoints "
                f"(-1 for none) are {newest}"
            )

    def latest(self) -> int | None:
        """The newest step saved, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: dict[str, Any], config: dict[str, Any]) -> None:
        """Save the state after `step` finished steps, if it is not; returns before it is written.

        Raises:
            OSError: there is no room for it, or the last save failed in the background.
        """
        if step == self._manager.latest_step():
            return
        needed = (_num_bytes(state) >> 20) + 1
        free = processes.gather(shutil.disk_usage(self._manager.directory).free >> 20)[0]
        if needed > free:  # the first process decides for all
            raise OSError(
                f"no room for checkpoint {step} in {self._manager.directory}: "
                f"{needed} MiB needed, {free} MiB free"
            )
        items = ocp_args.Composite(
            state=ocp_args.StandardSave(state),
            data=ocp_args.JsonSave(position),
            config=ocp_args.JsonSave(config),
        )
        with _as_os_error(f"checkpoint {step}, or the one before it, was not written"):
            self._manager.save(step, args=items)

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The data position and the config that a checkpoint was saved with."""
        items = ocp_args.Composite(data=ocp_args.JsonRestore(), config=ocp_args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["data"], restored["config"]

    def restore(self, step: int, target: Any) -> Any:
        """The state of a checkpoint, in the structure, types and shardings of `target`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        items = ocp_args.Composite(state=ocp_args.StandardRestore(abstract))
        return self._manager.restore(step, args=items)["state"]

    def wait(self) -> None:
        """Wait for the last save.

        Raises:
            OSError: it failed.
        """
        with _as_os_error("the last checkpoint was not written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Stop the background threads."""
        self._manager.close()


def _num_bytes(state: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(state))


@contextmanager
def _as_os_error(what: str) -> Iterator[None]:
    """Orbax passes on whatever its background threads met: say it in one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise OSError(f"{what}: {reason}") from error
